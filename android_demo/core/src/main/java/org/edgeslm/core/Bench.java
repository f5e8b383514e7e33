package org.edgeslm.core;

import java.util.ArrayList;
import java.util.Arrays;
import java.util.LinkedHashMap;
import java.util.List;
import java.util.Map;

/**
 * The job of `edgeslm bench`, one process: warm up until two rounds agree, then timed rounds of one prefill and one decode
 * (edgeslm/runtimes/workers/timing.py). Memory is sampled between runs, so timing is never disturbed.
 */
public final class Bench {
    static final int PREFILL = 128;
    static final int NEW = 64;
    static final int REPEATS = 3;
    static final int LEAST_WARMUPS = 1;
    static final int MOST_WARMUPS = 8;
    static final double WITHIN = 0.03;
    /** Ids that the engine's context must have. */
    public static final int CONTEXT = PREFILL + NEW;

    /** Hears how far it is, and may end it. */
    public interface Watcher {
        boolean at(int done, int most);
    }

    /** One timed round. */
    static final class Round {
        double prefillSeconds;
        double decodeSeconds;
        double[] latencies = new double[0];
    }

    /** What a process measured. */
    public static final class Result {
        final List<Round> warmups = new ArrayList<Round>();
        final List<Round> runs = new ArrayList<Round>();
        final List<Map<String, Long>> memory = new ArrayList<Map<String, Long>>();
        final Map<String, Long> before;
        final double loadSeconds;
        boolean steady;

        Result(Map<String, Long> before, double loadSeconds) {
            this.before = before;
            this.loadSeconds = loadSeconds;
        }
    }

    private final Engine engine;
    private final int prefill;
    private final int fresh;

    public Bench(Engine engine) {
        this(engine, PREFILL, NEW);
    }

    Bench(Engine engine, int prefill, int fresh) {
        this.engine = engine;
        this.prefill = prefill;
        this.fresh = fresh;
    }

    /** `before`: this process's memory before the model was loaded. @return null when the watcher ended it */
    public Result run(Map<String, Long> before, double loadSeconds, Watcher watcher) throws EngineError {
        Result result = new Result(before, loadSeconds);
        int most = MOST_WARMUPS + REPEATS;
        engine.calm();
        result.memory.add(Memory.now());
        do {
            if (!watcher.at(result.warmups.size(), most)) return null;
            Round round = round();
            if (round == null) return null;
            result.warmups.add(round);
            result.memory.add(Memory.now());
            result.steady = steady(result.warmups);
        } while (result.warmups.size() < MOST_WARMUPS && (result.warmups.size() < LEAST_WARMUPS || !result.steady));
        for (int i = 0; i < REPEATS; i++) {
            if (!watcher.at(MOST_WARMUPS + i, most)) return null;
            Round round = round();
            if (round == null) return null;
            result.runs.add(round);
            result.memory.add(Memory.now());
        }
        watcher.at(most, most);
        return result;
    }

    /** null when it was interrupted. */
    private Round round() throws EngineError {
        int[] ids = prompt(prefill);
        Round round = new Round();
        engine.keep(0);
        long start = System.nanoTime();
        if (!engine.feed(ids, 0, ids.length)) return null;
        int[] next = {engine.greedy()};
        round.prefillSeconds = since(start);
        round.latencies = new double[fresh];
        start = System.nanoTime();
        for (int i = 0; i < fresh; i++) {
            long begin = System.nanoTime();
            if (!engine.feed(next, 0, 1)) return null;
            next[0] = engine.greedy();
            round.latencies[i] = since(begin);
        }
        round.decodeSeconds = since(start);
        return round;
    }

    /** The ids that `edgeslm bench` feeds; of a small vocabulary, those that there are. */
    private int[] prompt(int length) {
        int[] ids = new int[length];
        for (int i = 0; i < length; i++) ids[i] = (100 + i) % engine.vocabulary();
        return ids;
    }

    private static double since(long start) {
        return (System.nanoTime() - start) / 1e9;
    }

    static boolean steady(List<Round> rounds) {
        if (rounds.size() < 2) return false;
        Round a = rounds.get(rounds.size() - 2);
        Round b = rounds.get(rounds.size() - 1);
        return near(a.prefillSeconds, b.prefillSeconds) && near(a.decodeSeconds, b.decodeSeconds);
    }

    private static boolean near(double a, double b) {
        return Math.abs(a - b) <= WITHIN * Math.max(a, b);
    }

    /** The job as a measurement tells it. */
    Map<String, Object> job(int threads) {
        Map<String, Object> warmups = new LinkedHashMap<String, Object>();
        warmups.put("least", (long) LEAST_WARMUPS);
        warmups.put("most", (long) MOST_WARMUPS);
        warmups.put("within", WITHIN);
        Map<String, Object> job = new LinkedHashMap<String, Object>();
        job.put("task", "bench");
        job.put("prefill", Arrays.<Object>asList((long) prefill));
        job.put("depths", Arrays.<Object>asList((long) prefill));
        job.put("new_tokens", (long) fresh);
        job.put("warmups", warmups);
        job.put("repeats", (long) REPEATS);
        job.put("sustained_s", 0.0);
        job.put("threads", (long) threads);
        job.put("cpus", new ArrayList<Object>());
        job.put("context", (long) (prefill + fresh));
        return job;
    }

    int prefill() {
        return prefill;
    }

    int fresh() {
        return fresh;
    }
}
