package org.edgeslm.demo;

import android.content.Context;
import java.io.IOException;
import org.edgeslm.core.BundleError;
import org.edgeslm.core.EngineError;

/** What went wrong, in the user's language. */
final class Sentences {
    private Sentences() {}

    static String of(Context context, Throwable error) {
        if (error instanceof BundleError) {
            BundleError wrong = (BundleError) error;
            return context.getString(id(wrong.kind), wrong.about());
        }
        if (error instanceof EngineError) return context.getString(R.string.error_engine, error.getMessage());
        if (error instanceof OutOfMemoryError) return context.getString(R.string.error_memory);
        if (error instanceof IOException) return context.getString(R.string.error_file, String.valueOf(error.getMessage()));
        return context.getString(R.string.error_other, error.toString());
    }

    private static int id(BundleError.Kind kind) {
        switch (kind) {
            case NONE:
                return R.string.bundle_none;
            case DAMAGED:
                return R.string.bundle_damaged;
            case VERSION:
                return R.string.bundle_version;
            case MISSING:
                return R.string.bundle_missing;
            case TRUNCATED:
                return R.string.bundle_truncated;
            case CHANGED:
                return R.string.bundle_changed;
            case ESCAPE:
                return R.string.bundle_escape;
            case CONTAINER:
                return R.string.bundle_container;
            case UNKNOWN_GRID:
                return R.string.bundle_unknown_grid;
            case SPACE:
                return R.string.bundle_space;
            default:
                return R.string.bundle_stopped;
        }
    }
}
