package org.edgeslm.core;

import java.io.Closeable;
import java.io.File;
import java.util.Arrays;

/** A GGUF file through llama.cpp. The native library must have been loaded before (see Libraries). */
public final class LlamaEngine implements Engine, Closeable {
    private static final int INTERRUPTED = 2;

    private final boolean stripsFirstBlank;
    private final int context;
    private final int vocabulary;
    private final float[] logits;
    private byte[] piece = new byte[64];
    private long model;
    private long ctx;
    private int length;

    /** @throws EngineError when llama.cpp cannot load the file or has no memory for a context of this length */
    public LlamaEngine(File file, Manifest manifest, int context, int threads) throws EngineError {
        stripsFirstBlank = manifest.stripsFirstBlank;
        this.context = context;
        byte[] path = (file.getPath() + "\0").getBytes(Manifest.UTF_8);
        Native.stop(false);
        model = Native.open(path);
        if (model == 0) throw new EngineError("llama.cpp cannot load " + file.getName() + ": " + complaint());
        ctx = Native.begin(model, context, threads);
        if (ctx == 0) {
            String why = complaint();
            close();
            throw new EngineError("llama.cpp cannot make a context of " + context + ": " + why);
        }
        vocabulary = Native.vocabulary(model);
        logits = new float[vocabulary];
    }

    /** What llama.cpp says of the processor it found. */
    public static String about() {
        byte[] out = new byte[1024];
        return new String(out, 0, Native.about(out), Manifest.UTF_8).trim();
    }

    private static String complaint() {
        byte[] out = new byte[512];
        String text = new String(out, 0, Native.complaint(out), Manifest.UTF_8).trim();
        return text.isEmpty() ? "no reason given" : text;
    }

    private void alive() throws EngineError {
        if (ctx == 0) throw new EngineError("the model was unloaded");
    }

    @Override
    public int vocabulary() {
        return vocabulary;
    }

    @Override
    public int context() {
        return context;
    }

    @Override
    public int[] tokenize(String text) {
        byte[] bytes = text.getBytes(Manifest.UTF_8);
        int[] out = new int[bytes.length + 8];
        int count = model == 0 ? 0 : Native.tokenize(model, bytes, bytes.length, out);
        if (count < 0) {
            out = new int[-count];
            count = Native.tokenize(model, bytes, bytes.length, out);
        }
        return Arrays.copyOf(out, Math.max(0, count));
    }

    @Override
    public byte[] piece(int id, boolean first) {
        int blanks = first && stripsFirstBlank ? 1 : 0;
        int count = model == 0 ? 0 : Native.piece(model, id, piece, blanks);
        if (count < 0) {
            piece = new byte[-count];
            count = Native.piece(model, id, piece, blanks);
        }
        return Arrays.copyOf(piece, Math.max(0, count));
    }

    @Override
    public void keep(int n) throws EngineError {
        alive();
        if (!Native.keep(ctx, n)) throw new EngineError("llama.cpp could not cut the sequence back");
        length = Math.min(length, n);
    }

    @Override
    public boolean feed(int[] ids, int from, int to) throws EngineError {
        alive();
        if (length + to - from > context) throw new EngineError(length + to - from + " ids do not fit the context");
        for (int at = from; at < to; at += Native.BATCH) {
            int status = Native.decode(ctx, ids, at, Math.min(Native.BATCH, to - at));
            if (status == INTERRUPTED) return false;
            if (status != 0) throw new EngineError("llama.cpp stopped with status " + status + ": " + complaint());
        }
        length += to - from;
        return true;
    }

    @Override
    public int greedy() throws EngineError {
        alive();
        int id = Native.greedy(ctx, vocabulary);
        if (id < 0) throw new EngineError("llama.cpp has no logits");
        return id;
    }

    @Override
    public float[] logits() throws EngineError {
        alive();
        if (!Native.logits(ctx, logits)) throw new EngineError("llama.cpp has no logits");
        return logits;
    }

    @Override
    public void interrupt() {
        Native.stop(true);
    }

    @Override
    public void calm() {
        Native.stop(false);
    }

    /** Frees the model's memory; afterwards every call is an EngineError. */
    @Override
    public void close() {
        if (ctx != 0) Native.end(ctx);
        if (model != 0) Native.close(model);
        ctx = 0;
        model = 0;
    }
}
