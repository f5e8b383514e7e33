package org.edgeslm.core;

import java.util.ArrayList;
import java.util.Arrays;
import java.util.List;

/**
 * A conversation with one model. It holds what the engine's sequence holds, so that of a conversation only what is new is
 * computed. The rules are those of `edgeslm chat` (edgeslm/runtimes/workers/tasks.py, `stream`).
 */
public final class Session {
    private static final int LEAST_ROOM = 16; // ids that an answer must have

    /** Hears an answer as it comes, on the thread that asked. */
    public interface Listener {
        void text(String more, Answer soFar);
    }

    private final Engine engine;
    private final Manifest manifest;
    private int[] held = new int[0];
    private volatile boolean stopped;

    public Session(Engine engine, Manifest manifest) {
        this.engine = engine;
        this.manifest = manifest;
    }

    /** Ends the answer that is being written, from any thread. */
    public void stop() {
        stopped = true;
        engine.interrupt();
    }

    /** Call before `ask`, on the thread that may later call `stop`: a stop that comes before the answer begins counts. */
    public void ready() {
        stopped = false;
        engine.calm();
    }

    /** The ids that a conversation is to the model. */
    public int[] ids(List<Message> messages) {
        Template template = manifest.template;
        int[] ids = engine.tokenize(template == null ? Template.plain(messages) : template.apply(messages, true));
        if (manifest.beginId < 0 || (ids.length > 0 && ids[0] == manifest.beginId)) return ids;
        int[] begun = new int[ids.length + 1];
        begun[0] = manifest.beginId;
        System.arraycopy(ids, 0, begun, 1, ids.length);
        return begun;
    }

    /**
     * Answers the last message. When the conversation has outgrown the context its oldest turns are left out.
     *
     * @throws EngineError when the runtime fails, or the last message alone is too long
     */
    public Answer ask(List<Message> messages, Sampling sampling, int maxNew, Listener listener) throws EngineError {
        List<Message> kept = new ArrayList<Message>(messages);
        int[] ids = ids(kept);
        int forgotten = 0;
        int room = Math.min(maxNew, Math.max(LEAST_ROOM, engine.context() / 4));
        while (ids.length + room > engine.context() && forget(kept)) {
            ids = ids(kept);
            forgotten++;
        }
        if (ids.length == 0 || ids.length + 1 > engine.context()) {
            throw new EngineError("the message has " + ids.length + " tokens, and the context " + engine.context());
        }
        Answer answer = new Answer(ids.length, forgotten);
        write(ids, sampling, Math.min(maxNew, engine.context() - ids.length), answer, listener);
        return answer;
    }

    /** Leaves out the oldest turn that is no system text and not the last. */
    private static boolean forget(List<Message> messages) {
        int first = messages.get(0).role.equals(Message.SYSTEM) ? 1 : 0;
        if (messages.size() - first < 2) return false;
        messages.remove(first);
        // a conversation goes on with a question
        if (messages.size() - first > 1 && messages.get(first).role.equals(Message.ASSISTANT)) messages.remove(first);
        return true;
    }

    private void write(int[] ids, Sampling sampling, int limit, Answer answer, Listener listener) throws EngineError {
        Sampler sampler = new Sampler(sampling);
        Utf8Stream stream = new Utf8Stream();
        int shared = shared(held, ids, ids.length - 1); // at least one id is fed, for its logits
        answer.reusedTokens = shared;
        long start = System.nanoTime();
        held = Arrays.copyOf(ids, shared); // true whatever happens next
        engine.keep(shared);
        if (!engine.feed(ids, shared, ids.length)) {
            answer.end(Answer.STOPPED, stream, listener);
            return;
        }
        int length = ids.length;
        held = Arrays.copyOf(ids, length + limit);
        answer.prefillSeconds = seconds(start);
        try {
            while (answer.tokens < limit && !stopped) {
                int id = sampler.isGreedy() ? engine.greedy() : sampler.pick(engine.logits());
                answer.count(seconds(start));
                if (stops(id)) {
                    answer.end(Answer.FINISHED, stream, listener);
                    return;
                }
                byte[] piece = engine.piece(id, answer.ids.isEmpty());
                answer.ids.add(id);
                answer.add(stream.add(piece, piece.length), listener);
                if (answer.tokens < limit) {
                    held[length] = id;
                    if (!engine.feed(held, length, length + 1)) break;
                    length++;
                }
            }
            answer.end(answer.tokens < limit ? Answer.STOPPED : Answer.LENGTH, stream, listener);
        } finally {
            held = Arrays.copyOf(held, length);
        }
    }

    private boolean stops(int id) {
        for (int stop : manifest.stopIds) if (stop == id) return true;
        return false;
    }

    private static double seconds(long start) {
        return (System.nanoTime() - start) / 1e9;
    }

    /** Length of the longest shared beginning, `limit` at most. */
    static int shared(int[] a, int[] b, int limit) {
        int length = 0;
        int end = Math.min(Math.min(a.length, b.length), limit);
        while (length < end && a[length] == b[length]) length++;
        return length;
    }
}
