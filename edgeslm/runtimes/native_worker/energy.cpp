// The task `energy` as workers/sampling.py has it: an idle stretch, then answers again and again while the device's
// sensors are read. What is read is kept as raw text; what it means is decided by whoever asked.

#include "device.h"
#include "tasks.h"
#include "timing.h"

#include <fcntl.h>
#include <poll.h>
#include <signal.h>
#include <spawn.h>
#include <sys/wait.h>
#include <unistd.h>

#include <algorithm>
#include <cmath>
#include <optional>

extern char ** environ;

namespace {

constexpr double COMMAND_TIMEOUT_S = 2.0;

// A command's stdout, stripped; null when it says nothing, cannot be started or takes too long.
Json said(const std::vector<std::string> & argv) {
    int ends[2];
    if (argv.empty() || pipe2(ends, O_CLOEXEC) != 0) {
        return nullptr;
    }
    std::vector<char *> words;
    for (const std::string & word : argv) {
        words.push_back(const_cast<char *>(word.c_str()));
    }
    words.push_back(nullptr);
    posix_spawn_file_actions_t actions;
    posix_spawn_file_actions_init(&actions);
    posix_spawn_file_actions_addopen(&actions, 0, "/dev/null", O_RDONLY, 0);
    posix_spawn_file_actions_adddup2(&actions, ends[1], 1);
    posix_spawn_file_actions_addopen(&actions, 2, "/dev/null", O_WRONLY, 0);
    pid_t child = 0;
    const bool started = posix_spawnp(&child, words[0], &actions, nullptr, words.data(), environ) == 0;
    posix_spawn_file_actions_destroy(&actions);
    close(ends[1]);
    std::string heard;
    bool ended = false;
    for (const double until = now() + COMMAND_TIMEOUT_S; started && !ended;) {
        const int left = int(std::ceil(1000 * (until - now())));
        pollfd pipe_end{ends[0], POLLIN, 0};
        if (left <= 0 || poll(&pipe_end, 1, left) <= 0) {
            break;
        }
        char part[4096];
        const ssize_t count = read(ends[0], part, sizeof part);
        ended = count <= 0;
        heard.append(part, size_t(std::max<ssize_t>(count, 0)));
    }
    close(ends[0]);
    if (started) {
        if (!ended) {
            kill(child, SIGKILL);
        }
        waitpid(child, nullptr, 0);
    }
    heard = stripped(heard);
    return ended && !heard.empty() ? Json(heard) : Json(nullptr);
}

struct Sample {
    std::vector<std::string> files;
    std::vector<std::vector<std::string>> commands;

    Json take() const {
        Json texts = Json::array();
        for (const std::string & path : files) {
            const std::optional<std::string> text = read_text(path);
            texts.push_back(text ? Json(*text) : Json(nullptr));
        }
        for (const std::vector<std::string> & argv : commands) {
            texts.push_back(said(argv));
        }
        return Json::array({now(), texts});
    }
};

} // namespace

Json energy(Desk & desk) {
    const Json & job = desk.job;
    pin(job);
    Engine engine(desk);
    const Ids prompt = checked_prompt(job, engine.vocabulary);
    const int length = job.at("prefill").at(0), new_tokens = job.at("new_tokens");
    const double idle_s = job.at("idle_s"), wanted_s = job.at("seconds");
    const Json spec = job.at("sample");
    const Sample sample{spec.value("files", std::vector<std::string>()),
                        spec.value("commands", std::vector<std::vector<std::string>>())};
    Json windows = Json::array(), samples = Json::array();
    const auto window = [&windows](const char * what, double begin, int tokens) {
        windows.push_back({{"what", what}, {"begin_s", begin}, {"end_s", now()}, {"tokens", tokens}});
    };
    {
        Ticker sampler(spec.value("interval_s", 0.1), true, [&] { samples.push_back(sample.take()); });
        double began = now();
        std::this_thread::sleep_for(std::chrono::duration<double>(idle_s));
        window("idle", began, 0);
        const double start = now();
        for (double spent; (spent = now() - start) < wanted_s;) {
            desk.progress(std::min(99L, std::lround(100 * spent / wanted_s)), 100);
            engine.keep(0);
            began = now();
            int32_t token = argmax(engine.feed(prompt.data(), length), engine.vocabulary);
            window("prefill", began, length);
            began = now();
            for (int i = 0; i < new_tokens; i++) {
                token = argmax(engine.feed(token), engine.vocabulary);
            }
            window("decode", began, new_tokens);
        }
    }
    return {{"engine", engine.info},
            {"windows", windows},
            {"samples", samples},
            {"wall_minus_monotonic_s", wall_minus_monotonic()}};
}
