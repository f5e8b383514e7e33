// Runs one job over llama.cpp on a device that has no Python: edgeslm-worker JOB.json
//
// Exit 0, or 1 with one sentence; 3 when stdin closed, for then whoever started it is gone.

#include "tasks.h"

#include <unistd.h>

#include <cstdio>
#include <map>
#include <new>

static const std::map<std::string, Json (*)(Desk &)> TASKS = {
    {"bench", bench}, {"ceilings", ceilings}, {"energy", energy}, {"generate", generate}, {"score", score}};

static Json done(Desk & desk) {
    const std::string name = desk.job.value("task", "");
    const auto task = TASKS.find(name);
    if (task == TASKS.end()) {
        throw JobError("the native worker does not do '" + name + "'; run it on a device that has Python");
    }
    desk.save_result(task->second(desk));
    return {{"ok", true}, {"result", "result.json"}};
}

int main(int count, char ** words) {
    if (count != 2) {
        fprintf(stderr, "usage: %s JOB.json\n", words[0]);
        return 2;
    }
    leave_when_stdin_closes();
    Desk desk(words[1]);
    Json last;
    try {
        desk.read();
        last = done(desk);
    } catch (const JobError & error) {
        last = {{"ok", false}, {"error", error.what()}};
    } catch (const std::bad_alloc &) {
        last = {{"ok", false}, {"error", "ran out of memory; use a shorter context or a device with more memory"}};
    } catch (const Json::exception & error) {
        last = {{"ok", false},
                {"error", std::string("the job is not one this worker understands (") + error.what() + ")"}};
    }
    desk.say(last);
    _exit(last["ok"] ? 0 : 1); // threads of libraries may still run; the result is already written
}
