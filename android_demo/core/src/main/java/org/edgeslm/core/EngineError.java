package org.edgeslm.core;

/** The runtime could not do what it was asked; the message has its own last words. */
public final class EngineError extends Exception {
    private static final long serialVersionUID = 1L;

    public EngineError(String message) {
        super(message);
    }
}
