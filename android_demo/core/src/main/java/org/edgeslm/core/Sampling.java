package org.edgeslm.core;

/** How the next token is chosen: temperature 0 is greedy; topK 0 takes all. */
public final class Sampling {
    public final double temperature;
    public final int topK;
    public final double topP;
    public final long seed;

    /** @throws IllegalArgumentException for values that choose nothing */
    public Sampling(double temperature, int topK, double topP, long seed) {
        if (!(temperature >= 0) || topK < 0 || !(topP > 0 && topP <= 1) || seed < 0) {
            throw new IllegalArgumentException("sampling needs temperature >= 0, top_k >= 0, 0 < top_p <= 1, seed >= 0");
        }
        this.temperature = temperature;
        this.topK = topK;
        this.topP = topP;
        this.seed = seed;
    }

    public static Sampling greedy() {
        return new Sampling(0, 0, 1, 0);
    }
}
