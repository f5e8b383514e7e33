package org.edgeslm.demo;

import android.content.res.AssetManager;
import java.io.FileNotFoundException;
import java.io.IOException;
import java.io.InputStream;
import org.edgeslm.core.BundleSource;
import org.edgeslm.core.Manifest;

/** The bundle that the app was built with, if any. */
final class AssetSource implements BundleSource {
    private static final String FOLDER = "bundle/";

    private final AssetManager assets;

    AssetSource(AssetManager assets) {
        this.assets = assets;
    }

    boolean isThere() {
        try {
            InputStream in = open(Manifest.NAME);
            if (in != null) in.close();
            return in != null;
        } catch (IOException error) {
            return false;
        }
    }

    @Override
    public InputStream open(String name) throws IOException {
        try {
            return assets.open(FOLDER + name, AssetManager.ACCESS_STREAMING);
        } catch (FileNotFoundException error) {
            return null;
        }
    }

    @Override
    public void close() {}
}
