package org.edgeslm.core;

import java.util.Arrays;

/**
 * The next id from logits, as `edgeslm chat` chooses it: top k, then top p, then a draw from PCG64(seed); the same ids for
 * the same logits (edgeslm/runtimes/workers/tasks.py). Only the likely ones are ever sorted.
 */
final class Sampler {
    private static final double FIRST_REACH = 8; // nats below the best; widened until enough of the mass is inside

    private final Sampling how;
    private final Pcg64 random;

    Sampler(Sampling how) {
        this.how = how;
        random = new Pcg64(how.seed);
    }

    boolean isGreedy() {
        return how.temperature == 0;
    }

    int pick(float[] logits) {
        double best = Double.NEGATIVE_INFINITY;
        for (float logit : logits) best = Math.max(best, logit / how.temperature);
        double total = 0;
        for (float logit : logits) total += Math.exp(logit / how.temperature - best);
        for (double reach = FIRST_REACH; ; reach *= 2) {
            int id = pick(logits, best, total, reach);
            if (id >= 0) return id;
        }
    }

    /** -1: the ids within `reach` of the best do not decide. */
    private int pick(float[] logits, double best, double total, double reach) {
        int count = 0;
        for (float logit : logits) if (best - logit / how.temperature <= reach) count++;
        Candidate[] near = new Candidate[count];
        count = 0;
        for (int id = 0; id < logits.length; id++) {
            double scaled = logits[id] / how.temperature;
            if (best - scaled <= reach) near[count++] = new Candidate(id, scaled);
        }
        Arrays.sort(near);
        boolean all = count == logits.length || reach > 1e300;
        if (how.topK > 0) {
            if (count < how.topK && !all) return -1;
            count = Math.min(count, how.topK);
            total = 0;
            for (int i = 0; i < count; i++) total += Math.exp(near[i].scaled - best);
            all = true;
        }
        double[] sums = new double[count];
        double sum = 0;
        int enough = 0;
        while (enough < count && (how.topP == 1 || enough == 0 || sums[enough - 1] < how.topP)) {
            sum += Math.exp(near[enough].scaled - best) / total;
            sums[enough++] = sum;
        }
        if (!all && (how.topP == 1 || sum < how.topP)) return -1;
        double drawn = random.next() * sum;
        int at = 0;
        while (at < enough - 1 && sums[at] <= drawn) at++;
        return near[at].id;
    }

    private static final class Candidate implements Comparable<Candidate> {
        final int id;
        final double scaled;

        Candidate(int id, double scaled) {
            this.id = id;
            this.scaled = scaled;
        }

        @Override
        public int compareTo(Candidate other) {
            int order = Double.compare(other.scaled, scaled);
            return order != 0 ? order : Integer.compare(id, other.id);
        }
    }
}
