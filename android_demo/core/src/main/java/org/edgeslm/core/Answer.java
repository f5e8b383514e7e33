package org.edgeslm.core;

import java.util.ArrayList;
import java.util.List;

/** An answer and its figures; while it is being written, what there is so far. */
public final class Answer {
    public static final String WRITING = "writing";
    public static final String FINISHED = "stop";
    public static final String LENGTH = "length";
    public static final String STOPPED = "stopped";

    public final int promptTokens;
    /** Turns that no longer fitted into the context. */
    public final int forgotten;
    public final List<Integer> ids = new ArrayList<Integer>();
    public int reusedTokens;
    /** Ids chosen, the one that ended it included. */
    public int tokens;
    public double prefillSeconds;
    public double firstSeconds;
    public double lastSeconds;
    public String ended = WRITING;
    private final StringBuilder text = new StringBuilder();

    Answer(int promptTokens, int forgotten) {
        this.promptTokens = promptTokens;
        this.forgotten = forgotten;
    }

    public String text() {
        return text.toString();
    }

    /** Tokens a second after the first; 0 while nothing can be said. */
    public double tokensPerSecond() {
        double spent = lastSeconds - firstSeconds;
        return tokens > 1 && spent > 0 ? (tokens - 1) / spent : 0;
    }

    void count(double now) {
        if (tokens == 0) firstSeconds = now;
        lastSeconds = now;
        tokens++;
    }

    void add(String more, Session.Listener listener) {
        text.append(more);
        if (listener != null) listener.text(more, this);
    }

    void end(String how, Utf8Stream stream, Session.Listener listener) {
        ended = how;
        add(stream.end(), listener);
    }
}
