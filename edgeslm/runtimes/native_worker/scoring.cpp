// The task `score`: negative log-likelihood per token, and the distance from a reference's distribution.
//
// T scored tokens of all windows, V vocabulary; numbers are nats, in double. The rule, the arrays and the precision in
// which two sides are compared (float32, as a reference file stores them) are those of workers/scoring.py.

#include "engine.h"
#include "npy.h"
#include "tasks.h"

#include <algorithm>
#include <atomic>
#include <cmath>
#include <numeric>
#include <optional>

namespace {

constexpr size_t NEAR = 5; // first choices compared as sets

using Row = std::vector<double>; // log-probabilities [V]

template <typename T> void log_probs(const T * logits, size_t width, Row & row) {
    row.assign(logits, logits + width);
    const double peak = *std::max_element(row.begin(), row.end());
    double sum = 0;
    for (double & value : row) {
        value -= peak;
        sum += std::exp(value);
    }
    const double shift = std::log(sum);
    for (double & value : row) {
        value -= shift;
    }
}

// KL(reference || student), summed as p (log p - log q) + q - p, whose every term is >= 0: rounding cannot make it
// negative and equal inputs give exactly 0. Both sides sum to one, so the added terms cancel.
double divergence(const Row & reference, const Row & student) {
    double sum = 0;
    for (size_t i = 0; i < reference.size(); i++) {
        const double p = std::exp(reference[i]);
        sum += p * (reference[i] - student[i]) + (std::exp(student[i]) - p);
    }
    return std::max(sum, 0.0);
}

std::vector<size_t> nearest(const float * row, size_t width) {
    std::vector<size_t> order(width);
    std::iota(order.begin(), order.end(), 0);
    std::nth_element(order.begin(), order.begin() + NEAR - 1, order.end(),
                     [row](size_t a, size_t b) { return row[a] > row[b]; });
    order.resize(NEAR);
    std::sort(order.begin(), order.end());
    return order;
}

// Share of the reference's NEAR first choices that are among the student's.
double overlap(const float * reference, size_t width, const std::vector<float> & student) {
    if (width <= NEAR) {
        return 1;
    }
    const std::vector<size_t> left = nearest(reference, width), right = nearest(student.data(), student.size());
    std::vector<size_t> both;
    std::set_intersection(left.begin(), left.end(), right.begin(), right.end(), std::back_inserter(both));
    return double(both.size()) / NEAR;
}

struct Scores {
    explicit Scores(size_t tokens) : nll(tokens), confidence(tokens), top1(tokens) {}

    void compare_with(Matrix && matrix) {
        const size_t tokens = nll.size();
        reference.emplace(std::move(matrix));
        for (std::vector<double> * array : {&kl, &reference_nll, &delta_p, &top5_overlap}) {
            array->resize(tokens);
        }
        reference_top1.resize(tokens);
    }

    // One token: logits [V] and the id that followed -> whether the logits are finite. Called from several threads.
    bool take(size_t at, const float * logits, size_t width, size_t target) {
        Row row, other;
        log_probs(logits, width, row);
        if (!std::all_of(row.begin(), row.end(), [](double value) { return std::isfinite(value); })) {
            return false;
        }
        const std::vector<float> single(row.begin(), row.end());
        const size_t top = size_t(argmax(single.data(), int(width)));
        nll[at] = -row[target];
        top1[at] = int32_t(top);
        confidence[at] = std::exp(row[top]);
        if (out) {
            std::copy(single.begin(), single.end(), out->row(at));
        }
        if (reference) {
            const float * theirs = reference->row(at);
            const double mine = row[target];
            if (reference->columns == width) {
                row.assign(single.begin(), single.end());
                other.assign(theirs, theirs + width);
            } else { // vocabularies of a family are padded to different sizes, and what lies in the padding is no token
                const size_t shared = std::min(width, reference->columns);
                log_probs(single.data(), shared, row);
                log_probs(theirs, shared, other);
            }
            kl[at] = divergence(other, row);
            reference_top1[at] = argmax(theirs, int(reference->columns));
            reference_nll[at] = -double(theirs[target]);
            delta_p[at] = std::exp(mine) - std::exp(double(theirs[target]));
            top5_overlap[at] = overlap(theirs, reference->columns, single);
        }
        return true;
    }

    Json finish(const Desk & desk) const {
        Json arrays = Json::object(), means = Json::object();
        const auto keep = [&](const char * name, const auto & values) {
            arrays[name] = std::string(name) + ".npy";
            means[name] = std::accumulate(values.begin(), values.end(), 0.0) / double(values.size());
            save_npy(desk.beside(arrays[name]), values);
        };
        keep("nll", nll);
        keep("confidence", confidence);
        keep("top1", top1);
        if (reference) {
            keep("kl", kl);
            keep("reference_nll", reference_nll);
            keep("delta_p", delta_p);
            keep("top5_overlap", top5_overlap);
            keep("reference_top1", reference_top1);
        }
        return {{"tokens", nll.size()}, {"arrays", arrays}, {"means", means}};
    }

    std::optional<Matrix> out, reference;
    std::vector<double> nll, confidence, kl, reference_nll, delta_p, top5_overlap;
    std::vector<int32_t> top1, reference_top1;
};

size_t checked(const std::vector<Ids> & windows, int first, int vocabulary) {
    size_t tokens = 0;
    for (size_t i = 0; i < windows.size(); i++) {
        const Ids & window = windows[i];
        if (first < 0 || window.size() < size_t(first) + 2) {
            throw JobError("window " + std::to_string(i) + " has " + std::to_string(window.size()) +
                           " ids, scoring from " + std::to_string(first) + " needs " + std::to_string(first + 2));
        }
        if (!std::all_of(window.begin(), window.end(), [=](int id) { return id >= 0 && id < vocabulary; })) {
            throw JobError("window " + std::to_string(i) + " holds an id outside the model's vocabulary of " +
                           std::to_string(vocabulary));
        }
        tokens += window.size() - 1 - size_t(first);
    }
    if (windows.empty()) {
        throw JobError("no window to score; give text of at least one context length");
    }
    return tokens;
}

} // namespace

Json score(Desk & desk) {
    const Json & job = desk.job;
    Engine engine(desk);
    const std::vector<Ids> windows = job.at("windows");
    const int first = job.at("score_from");
    const size_t tokens = checked(windows, first, engine.vocabulary), width = size_t(engine.vocabulary);
    Scores scores(tokens);
    const Json to = job.value("reference_out", Json()), from = job.value("reference_in", Json());
    if (to.is_string()) {
        scores.out.emplace(Matrix::create(desk.beside(to), tokens, width));
    }
    if (from.is_string()) {
        scores.compare_with(Matrix::open(from));
        if (scores.reference->rows != tokens) {
            throw JobError("the reference holds " + scores.reference->dtype + ", this model scores " +
                           std::to_string(tokens) + " tokens: both must score the same windows");
        }
    }
    const auto unknown = [&](int id) { return scores.reference && size_t(id) >= scores.reference->columns; };
    size_t at = 0;
    for (size_t number = 0; number < windows.size(); number++) {
        const Ids & window = windows[number];
        if (std::any_of(window.begin() + first + 1, window.end(), unknown)) {
            throw JobError("window " + std::to_string(number) + " holds an id outside the reference's vocabulary of " +
                           std::to_string(scores.reference->columns));
        }
        const size_t began = at;
        engine.score(window.data(), int(window.size()) - 1, first, [&](const float * rows, int count) {
            const size_t here = at, from_id = size_t(first) + 1 + (here - began); // the id that followed the first row
            std::atomic<bool> finite{true};
            on_threads(engine.threads, [&](int thread) {
                for (int i = thread; i < count; i += engine.threads) {
                    const size_t target = size_t(window[from_id + size_t(i)]);
                    if (!scores.take(here + size_t(i), rows + size_t(i) * width, width, target)) {
                        finite = false;
                    }
                }
            });
            if (!finite) {
                throw JobError("the model's logits hold NaN or infinity; the file is damaged or overflows its format");
            }
            at += size_t(count);
        });
        desk.progress(long(number + 1), long(windows.size()));
    }
    Json result = scores.finish(desk);
    result["engine"] = engine.info;
    return result;
}
