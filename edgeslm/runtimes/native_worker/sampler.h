// Picks the next id: greedy, or top-k, then top-p, then a draw, so that the same logits and the same seed give the same
// ids as workers/tasks.py gives with numpy.
#pragma once

#include "desk.h"

// numpy.random.PCG64: O'Neill's PCG XSL-RR 128/64 (2014), seeded through numpy's SeedSequence.
class Pcg64 {
public:
    explicit Pcg64(uint64_t seed);
    double random(); // in [0, 1), 53 bits

private:
    void step();
    unsigned __int128 state = 0, increment = 1;
};

std::function<int32_t(const float * logits, int count)> sampler(const Json & spec); // raises JobError
