package org.edgeslm.demo;

import android.app.Application;
import android.content.Context;

/** The process: one Host, which outlives screens that are turned, left and opened again. */
public final class DemoApp extends Application {
    private Host host;

    @Override
    public void onCreate() {
        super.onCreate();
        host = new Host(this);
        host.start();
    }

    static Host host(Context context) {
        return ((DemoApp) context.getApplicationContext()).host;
    }

    @Override
    public void onTrimMemory(int level) {
        super.onTrimMemory(level);
        host.trim(level);
    }

    @Override
    public void onLowMemory() {
        super.onLowMemory();
        host.trim(TRIM_MEMORY_COMPLETE);
    }
}
