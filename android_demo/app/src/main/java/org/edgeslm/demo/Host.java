package org.edgeslm.demo;

import android.app.ActivityManager;
import android.content.ComponentCallbacks2;
import android.content.Context;
import android.net.Uri;
import android.os.Build;
import android.os.Handler;
import android.os.Looper;
import java.util.ArrayList;
import java.util.Collections;
import java.util.List;
import java.util.concurrent.ExecutorService;
import java.util.concurrent.Executors;
import org.edgeslm.core.Answer;
import org.edgeslm.core.BenchDocument;
import org.edgeslm.core.Manifest;
import org.edgeslm.core.Memory;
import org.edgeslm.core.Message;

/**
 * Everything that outlives a screen: the bundle, the model, the conversation, what is going on. Fields belong to the main
 * thread; the model belongs to one worker thread; each tells the other by posting.
 */
final class Host {
    /** What is going on. */
    enum State {
        EMPTY, UNPACKING, IDLE, LOADING, ANSWERING, BENCHING
    }

    /** A screen that shows some of it; called on the main thread. */
    interface Watcher {
        void changed();
    }

    final Context context;
    final Store store;
    private final Handler main = new Handler(Looper.getMainLooper());
    private final ExecutorService worker = Executors.newSingleThreadExecutor();
    private final Worker work;
    private final List<Watcher> watchers = new ArrayList<Watcher>();
    private final List<Message> messages = new ArrayList<Message>();
    private State state = State.EMPTY;
    private Manifest manifest;
    private String system = "";
    private String problem = "";
    private String partial = "";
    private double speed;
    private int forgotten;
    private long done;
    private long total;
    private BenchDocument bench;

    Host(Context context) {
        this.context = context;
        store = new Store(context);
        work = new Worker(this);
    }

    State state() {
        return state;
    }

    Manifest manifest() {
        return manifest;
    }

    List<Message> messages() {
        return Collections.unmodifiableList(messages);
    }

    /** The answer that is being written, as far as it is. */
    String partial() {
        return partial;
    }

    String system() {
        return system;
    }

    /** A sentence, or "". */
    String problem() {
        return problem;
    }

    /** Tokens a second of the last answer; 0: none yet. */
    double speed() {
        return speed;
    }

    int forgotten() {
        return forgotten;
    }

    long done() {
        return done;
    }

    long total() {
        return total;
    }

    /** null until there was one. */
    BenchDocument bench() {
        return bench;
    }

    long memoryBytes() {
        return Memory.resident();
    }

    void watch(Watcher watcher) {
        watchers.add(watcher);
        watcher.changed();
    }

    void unwatch(Watcher watcher) {
        watchers.remove(watcher);
    }

    private void tell() {
        for (Watcher watcher : new ArrayList<Watcher>(watchers)) watcher.changed();
    }

    void post(Runnable change) {
        main.post(change);
    }

    private void enter(State next) {
        state = next;
        if (next != State.IDLE && next != State.EMPTY) problem = "";
        tell();
    }

    /** The bundle of the last time, else the one in the app, else none. */
    void start() {
        system = store.load(messages);
        enter(State.UNPACKING);
        worker.execute(work.opening());
    }

    void importFrom(Uri uri) {
        if (state != State.IDLE && state != State.EMPTY) return;
        done = total = 0;
        enter(State.UNPACKING);
        worker.execute(work.importing(uri));
    }

    void ask(String text) {
        if (state != State.IDLE) return;
        messages.add(new Message(Message.USER, text));
        store.save(system, messages);
        partial = "";
        enter(State.LOADING);
        List<Message> all = new ArrayList<Message>(messages);
        boolean takes = manifest.template != null && manifest.template.takesSystem();
        if (takes && !system.isEmpty()) all.add(0, new Message(Message.SYSTEM, system));
        work.ready();
        worker.execute(work.answering(all));
    }

    void runBench() {
        if (state != State.IDLE) return;
        bench = null;
        done = total = 0;
        enter(State.BENCHING);
        work.ready();
        worker.execute(work.benching());
    }

    /** Ends what runs: an answer keeps what was written, an unpacking or a benchmark keeps nothing. */
    void stop() {
        work.stop();
    }

    void clear() {
        if (state == State.ANSWERING || state == State.LOADING) stop();
        messages.clear();
        partial = problem = "";
        forgotten = 0;
        store.save(system, messages);
        tell();
    }

    void setSystem(String text) {
        system = text.trim();
        store.save(system, messages);
        tell();
    }

    /** Gives the model's memory back when the system needs it; the next message loads it again. */
    void trim(int level) {
        boolean critical = level == ComponentCallbacks2.TRIM_MEMORY_RUNNING_CRITICAL
                || level >= ComponentCallbacks2.TRIM_MEMORY_COMPLETE;
        boolean idle = state == State.IDLE && level >= ComponentCallbacks2.TRIM_MEMORY_BACKGROUND;
        if (!critical && !idle) return;
        if (critical && (state == State.ANSWERING || state == State.BENCHING)) {
            stop();
            problem = context.getString(R.string.error_low_memory);
        }
        worker.execute(work.unloading());
        tell();
    }

    /** Bytes that may be taken before the system starts to kill. */
    long freeBytes() {
        ActivityManager.MemoryInfo info = new ActivityManager.MemoryInfo();
        ((ActivityManager) context.getSystemService(Context.ACTIVITY_SERVICE)).getMemoryInfo(info);
        return info.availMem - info.threshold;
    }

    static String deviceName() {
        String maker = Build.MANUFACTURER;
        String model = Build.MODEL;
        return model.toLowerCase().startsWith(maker.toLowerCase()) ? model : maker + " " + model;
    }

    // what the worker tells; on the main thread

    void opened(Manifest found) {
        boolean other = manifest != null && !manifest.modelSha256.equals(found.modelSha256);
        manifest = found;
        speed = 0;
        if (other) clear();
        enter(State.IDLE);
    }

    void failed(Throwable error) {
        finish();
        problem = error == null ? "" : Sentences.of(context, error);
        enter(manifest == null ? State.EMPTY : State.IDLE);
    }

    void at(long now, long of) {
        done = now;
        total = of;
        tell();
    }

    void answering() {
        enter(State.ANSWERING);
    }

    void heard(String soFar, double tokensPerSecond) {
        partial = soFar;
        speed = tokensPerSecond > 0 ? tokensPerSecond : speed;
        tell();
    }

    void answered(Answer answer) {
        partial = answer.text();
        forgotten = answer.forgotten;
        finish();
        enter(State.IDLE);
    }

    void benched(BenchDocument document) {
        bench = document;
        enter(State.IDLE);
    }

    /** What was written becomes a message; a question that was taken back leaves nothing. */
    private void finish() {
        boolean asked = !messages.isEmpty() && messages.get(messages.size() - 1).role.equals(Message.USER);
        if (asked && !partial.isEmpty()) messages.add(new Message(Message.ASSISTANT, partial));
        partial = "";
        store.save(system, messages);
    }
}
