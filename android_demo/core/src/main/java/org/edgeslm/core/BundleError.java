package org.edgeslm.core;

import java.io.IOException;

/** Why a bundle is not used. `kind` chooses the sentence in the user's language; the message is the English one. */
public final class BundleError extends IOException {
    private static final long serialVersionUID = 1L;

    /** One kind a sentence. */
    public enum Kind {
        NONE("There is no model bundle in this file."),
        DAMAGED("The bundle's manifest is damaged; copy the bundle again."),
        VERSION("This bundle is of version %1$s, and this app reads version %2$s; update the app or export the bundle again."),
        MISSING("%1$s is missing from the bundle; copy the bundle again."),
        TRUNCATED("%1$s is %2$s bytes long instead of %3$s; copy the bundle again."),
        CHANGED("%1$s is not what was exported; copy the bundle again."),
        ESCAPE("The bundle names %1$s, which leads out of it; do not trust it."),
        CONTAINER("This bundle holds a model of the kind %1$s, and this app runs gguf; export it with --kind gguf."),
        UNKNOWN_GRID("This app's llama.cpp does not know the number grid %1$s; export the model on another one."),
        SPACE("There is not enough room: %1$s MB are needed and %2$s MB are free."),
        STOPPED("Stopped; nothing was kept.");

        final String sentence;

        Kind(String sentence) {
            this.sentence = sentence;
        }
    }

    public final Kind kind;
    private final String[] about;

    public BundleError(Kind kind, Object... about) {
        super(String.format(kind.sentence, about));
        this.kind = kind;
        this.about = new String[about.length];
        for (int i = 0; i < about.length; i++) this.about[i] = String.valueOf(about[i]);
    }

    /** What the sentence's places are filled with. */
    public Object[] about() {
        return about.clone();
    }
}
