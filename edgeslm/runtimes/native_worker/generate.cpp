// The task `generate`: continue each of `prompts`; every prompt starts the sampler anew from its seed. As soon as an
// answer is done a line {"answered": i, "answer": {...}} is said, for whoever keeps them.

#include "engine.h"
#include "sampler.h"
#include "tasks.h"

#include <algorithm>

// `held` is what the engine's sequence holds and is brought up to date, its common prefix with `ids` reused. The stop
// id is counted as generated but not kept among the answer's ids.
static Json continued(Engine & engine, Ids & held, const Ids & ids, const Json & job) {
    if (ids.empty() ||
        !std::all_of(ids.begin(), ids.end(), [&](int id) { return id >= 0 && id < engine.vocabulary; })) {
        throw JobError("a prompt must hold at least one id, all below the vocabulary of " +
                       std::to_string(engine.vocabulary));
    }
    const auto pick = sampler(job.value("sampling", Json::object()));
    const Ids stop = job.value("stop", Ids());
    const int prompt = int(ids.size()), room = engine.context - prompt;
    if (room < 1) {
        throw JobError(std::to_string(prompt) + " prompt ids leave no room in the context of " +
                       std::to_string(engine.context));
    }
    const int limit = std::min(job.at("max_new").get<int>(), room);
    const auto last = ids.end() - 1; // at least one id is fed, for its logits
    const int shared = int(std::mismatch(ids.begin(), last, held.begin(), held.end()).first - ids.begin());
    const double start = now();
    engine.keep(shared);
    const float * logits = engine.feed(ids.data() + shared, prompt - shared);
    held = ids;
    const double prefill_s = now() - start;
    Ids answer;
    int count = 0;
    Json first_s = nullptr, stopped_by = nullptr;
    while (count < limit) {
        const int32_t token = pick(logits, engine.vocabulary);
        count++;
        if (first_s.is_null()) {
            first_s = now() - start;
        }
        if (std::find(stop.begin(), stop.end(), token) != stop.end()) {
            stopped_by = token;
            break;
        }
        answer.push_back(token);
        if (count < limit) {
            logits = engine.feed(token);
            held.push_back(token);
        }
    }
    return {
        {"ids", answer},
        {"tokens", count},
        {"ended", stopped_by.is_null() ? "length" : "stop"},
        {"stopped_by", stopped_by},
        {"prompt_tokens", prompt},
        {"reused_tokens", shared},
        {"prefill_s", prefill_s},
        {"time_to_first_token_s", first_s},
        {"decode_s", now() - start - prefill_s},
    };
}

Json generate(Desk & desk) {
    Engine engine(desk);
    const std::vector<Ids> prompts = desk.job.at("prompts");
    Json answers = Json::array();
    Ids held;
    for (size_t i = 0; i < prompts.size(); i++) {
        answers.push_back(continued(engine, held, prompts[i], desk.job));
        desk.say({{"answered", i}, {"answer", answers.back()}});
        desk.progress(long(i + 1), long(prompts.size()));
    }
    return {{"engine", engine.info}, {"answers", answers}};
}
