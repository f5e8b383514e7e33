#include "sampler.h"

#include "engine.h"

#include <algorithm>
#include <cmath>
#include <memory>
#include <numeric>

using Wide = unsigned __int128;

static Wide wide(uint64_t high, uint64_t low) {
    return Wide(high) << 64 | low;
}

// numpy/random/bit_generator.pyx, class SeedSequence, pool of four words
static std::vector<uint64_t> seed_words(uint64_t seed, size_t count) {
    uint32_t multiplier = 0x43b0d7e5;
    const auto hashed = [&multiplier](uint32_t value) {
        value ^= multiplier;
        multiplier *= 0x931e8875;
        value *= multiplier;
        return value ^ value >> 16;
    };
    uint32_t pool[4] = {hashed(uint32_t(seed)), hashed(uint32_t(seed >> 32)), hashed(0), hashed(0)};
    for (int from = 0; from < 4; from++) {
        for (int to = 0; to < 4; to++) {
            if (from != to) {
                const uint32_t mixed = 0xca01f9dd * pool[to] - 0x4973f715 * hashed(pool[from]);
                pool[to] = mixed ^ mixed >> 16;
            }
        }
    }
    std::vector<uint64_t> words(count);
    multiplier = 0x8b51f9dd;
    for (size_t i = 0; i < 2 * count; i++) {
        uint32_t value = pool[i % 4] ^ multiplier;
        multiplier *= 0x58f38ded;
        value *= multiplier;
        words[i / 2] |= uint64_t(value ^ value >> 16) << 32 * (i % 2);
    }
    return words;
}

Pcg64::Pcg64(uint64_t seed) {
    const std::vector<uint64_t> words = seed_words(seed, 4);
    increment = wide(words[2], words[3]) << 1 | 1;
    step();
    state += wide(words[0], words[1]);
    step();
}

void Pcg64::step() {
    state = state * wide(2549297995355413924u, 4865540595714422341u) + increment;
}

double Pcg64::random() {
    step();
    const uint64_t folded = uint64_t(state >> 64) ^ uint64_t(state);
    const unsigned turn = unsigned(state >> 122);
    return double((folded >> turn | folded << (-turn & 63)) >> 11) / 9007199254740992.0;
}

std::function<int32_t(const float *, int)> sampler(const Json & spec) {
    const double temperature = spec.value("temperature", 0.0), top_p = spec.value("top_p", 1.0);
    const int top_k = spec.value("top_k", 0);
    if (!(temperature >= 0) || !(top_p > 0 && top_p <= 1) || top_k < 0) {
        throw JobError("sampling needs temperature >= 0, top_k >= 0 and 0 < top_p <= 1");
    }
    if (temperature == 0) {
        return argmax;
    }
    auto generator = std::make_shared<Pcg64>(spec.value("seed", uint64_t(0)));
    return [=](const float * logits, int count) {
        std::vector<int32_t> order(static_cast<size_t>(count));
        std::iota(order.begin(), order.end(), 0);
        if (std::any_of(logits, logits + count, [](float value) { return std::isnan(value); })) {
            throw JobError("the model's logits hold NaN; the file is damaged or overflows its format");
        }
        const auto before = [logits](int32_t a, int32_t b) {
            return logits[a] != logits[b] ? logits[a] > logits[b] : a < b;
        };
        const size_t wanted = top_k ? size_t(std::min(top_k, count)) : order.size();
        std::partial_sort(order.begin(), order.begin() + long(wanted), order.end(), before);
        std::vector<double> sums(wanted); // of probabilities, from the likeliest on
        const double peak = double(logits[order[0]]) / temperature;
        for (size_t i = 0; i < wanted; i++) {
            sums[i] = std::exp(double(logits[order[i]]) / temperature - peak);
        }
        const double total = std::accumulate(sums.begin(), sums.end(), 0.0);
        double sum = 0;
        for (double & value : sums) {
            value = sum += value / total;
        }
        if (top_p < 1) {
            const size_t enough = size_t(std::lower_bound(sums.begin(), sums.end(), top_p) - sums.begin()) + 1;
            sums.resize(std::min(enough, wanted));
        }
        const double drawn = generator->random() * sums.back();
        const size_t at = size_t(std::upper_bound(sums.begin(), sums.end(), drawn) - sums.begin());
        return order[std::min(at, sums.size() - 1)];
    };
}
