// The task `bench`, phase by phase as workers/timing.py has it: load, warm up until stable, then timed rounds.
//
// One round visits every length of `prefill` and `depths` in ascending order: the cache is emptied, that many ids are
// fed (a timed prefill where asked for), one is picked, and where the length is a depth `new_tokens` are decoded after
// it one by one. Memory is sampled all through the warm-ups and once after each timed round.

#include "timing.h"

#include "device.h"
#include "tasks.h"

#include <algorithm>
#include <set>

namespace {

struct Phase {
    const char * kind;
    int tokens, depth;
    Json run;
};
using Round = std::vector<Phase>; // the same phases in the same order every time

struct Plan {
    Ids prompt;
    std::set<int> prefill, depths;
    int new_tokens;
};

Json decode(Engine & engine, int32_t token, int new_tokens, Stopwatch & watch) {
    std::vector<double> latencies(static_cast<size_t>(new_tokens));
    watch.start();
    for (double & latency : latencies) {
        const double begin = now();
        token = argmax(engine.feed(token), engine.vocabulary);
        latency = now() - begin;
    }
    Json run = watch.stop();
    run["token_latency_s"] = latencies;
    return run;
}

int32_t prefill(Engine & engine, const Plan & plan, int length) { // the id picked after it
    return argmax(engine.feed(plan.prompt.data(), length), engine.vocabulary);
}

Round one_round(Engine & engine, const Plan & plan, const Json & job) {
    std::set<int> lengths = plan.prefill;
    lengths.insert(plan.depths.begin(), plan.depths.end());
    Stopwatch watch(job);
    Round round;
    for (int length : lengths) {
        engine.keep(0);
        int32_t token = plan.prompt[0];
        if (length) {
            watch.start();
            token = prefill(engine, plan, length);
            Json run = watch.stop();
            if (plan.prefill.count(length)) {
                run["first_s"] = run["seconds"];
                round.push_back({"prefill", length, 0, std::move(run)});
            }
        }
        if (plan.depths.count(length)) {
            round.push_back({"decode", plan.new_tokens, length, decode(engine, token, plan.new_tokens, watch)});
        }
    }
    return round;
}

bool steady(const std::vector<Round> & rounds, double within) {
    if (rounds.size() < 2) {
        return false;
    }
    const Round & last = rounds.back();
    const Round & before = rounds[rounds.size() - 2];
    for (size_t i = 0; i < last.size(); i++) {
        const double a = before[i].run["seconds"], b = last[i].run["seconds"];
        if (std::abs(a - b) > within * std::max(a, b)) {
            return false;
        }
    }
    return true;
}

// Decode at the first depth again and again: how a device slows down as it warms.
Json sustained(Engine & engine, const Plan & plan, const Json & job) {
    Json found = Json::array();
    const int length = job.at("depths").at(0);
    const double seconds = job.value("sustained_s", 0.0), began = now();
    for (double at; (at = now() - began) < seconds;) {
        engine.keep(0);
        Stopwatch watch(job);
        const int32_t token = length ? prefill(engine, plan, length) : plan.prompt[0];
        const Json run = decode(engine, token, plan.new_tokens, watch);
        found.push_back(
            {{"at_s", at}, {"seconds", run["seconds"]}, {"tokens", plan.new_tokens}, {"watch", run["watch"]}});
    }
    return found;
}

Json gathered(const std::vector<Round> & warmups, const std::vector<Round> & rounds) {
    Json phases = Json::array();
    for (size_t i = 0; i < rounds[0].size(); i++) {
        Json runs = Json::array(), before = Json::array();
        for (const Round & round : warmups) {
            before.push_back(round[i].run);
        }
        for (const Round & round : rounds) {
            runs.push_back(round[i].run);
        }
        const Phase & phase = rounds[0][i];
        phases.push_back({{"kind", phase.kind},
                          {"tokens", phase.tokens},
                          {"depth", phase.depth},
                          {"warmups", before},
                          {"runs", runs}});
    }
    return phases;
}

} // namespace

Ids checked_prompt(const Json & job, int vocabulary) {
    const Ids prompt = job.at("prompt");
    const std::vector<int> prefill = job.at("prefill"), depths = job.value("depths", std::vector<int>());
    const auto known = [&](int id) { return id >= 0 && id < vocabulary; };
    if (prompt.empty() || !std::all_of(prompt.begin(), prompt.end(), known) || job.at("new_tokens") < 1) {
        throw JobError("the prompt must hold ids below " + std::to_string(vocabulary) +
                       " and new_tokens must be at least 1");
    }
    const int most = int(prompt.size());
    const auto within = [&](int least) { return [=](int length) { return length >= least && length <= most; }; };
    if (prefill.size() + depths.size() == 0 || !std::all_of(prefill.begin(), prefill.end(), within(1)) ||
        !std::all_of(depths.begin(), depths.end(), within(0))) {
        throw JobError("lengths must be between 1 (depths: 0) and " + std::to_string(most) +
                       ", the length of the prompt");
    }
    return prompt;
}

Json bench(Desk & desk) {
    const Json & job = desk.job;
    pin(job);
    const Json before_load = memory();
    const double clock = wall_minus_monotonic();
    Engine engine(desk);
    const Plan plan{checked_prompt(job, engine.vocabulary), job.at("prefill"), job.at("depths"), job.at("new_tokens")};
    Json samples = Json::array({memory()});
    const Json wanted = job.at("warmups");
    const size_t least = wanted.at("least"), most = wanted.at("most"), repeats = job.at("repeats");
    std::vector<Round> warmups, rounds;
    while (warmups.size() < most) {
        {
            Ticker watch(0.02, false, [&samples] { samples.push_back(memory()); });
            warmups.push_back(one_round(engine, plan, job));
        }
        samples.push_back(memory());
        desk.progress(long(warmups.size()), long(most + repeats));
        if (warmups.size() >= least && (least >= most || steady(warmups, wanted.at("within")))) {
            break;
        }
    }
    while (rounds.size() < repeats) {
        rounds.push_back(one_round(engine, plan, job));
        samples.push_back(memory());
        desk.progress(long(most + rounds.size()), long(most + repeats));
    }
    if (rounds.empty()) {
        throw JobError("repeats must be at least 1");
    }
    const Json curve = job.value("sustained_s", 0.0) > 0 ? sustained(engine, plan, job) : Json::array();
    return {
        {"engine", engine.info},
        {"load_s", engine.load_s},
        {"phases", gathered(warmups, rounds)},
        {"sustained", curve},
        {"stable", steady(warmups, wanted.value("within", 0.0))},
        {"kv_cache_bytes", engine.kv_cache_bytes},
        {"memory", {{"before_load", before_load}, {"samples", samples}}},
        {"steps", {{"wall_minus_monotonic_s", {clock, wall_minus_monotonic()}}}},
    };
}
