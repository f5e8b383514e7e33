package org.edgeslm.core;

/** llama.cpp's functions as edgeslm_jni.c hands them on. One thread at a time, but for `stop`. */
final class Native {
    /** Ids that one `decode` takes at most. */
    static final int BATCH = 512;

    private Native() {}

    static native long open(byte[] path);

    static native void close(long model);

    static native long begin(long model, int context, int threads);

    static native void end(long ctx);

    static native int vocabulary(long model);

    static native int decode(long ctx, int[] ids, int from, int count);

    static native int greedy(long ctx, int vocabulary);

    static native boolean logits(long ctx, float[] out);

    static native boolean keep(long ctx, int n);

    static native int tokenize(long model, byte[] text, int length, int[] out);

    static native int piece(long model, int id, byte[] out, int blanks);

    static native void stop(boolean now);

    static native int complaint(byte[] out);

    static native int about(byte[] out);
}
