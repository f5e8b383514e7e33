// What every task stands on: its job, guarded stdout, clocks, and results written under another name and then renamed.
// The protocol is that of workers/common.py.
#pragma once

#include <nlohmann/json.hpp>

#include <functional>
#include <stdexcept>
#include <string>
#include <vector>

using Json = nlohmann::json;
using Ids = std::vector<int32_t>;

// A job that cannot be done; its message is the sentence the parent shows.
struct JobError : std::runtime_error {
    using std::runtime_error::runtime_error;
};

class Desk {
public:
    explicit Desk(const std::string & job_path);

    void read();                                 // fills `job`. Raises JobError
    void say(const Json & document);             // one line of stdout
    void progress(long done, long total);        // at most ten lines a second, and always the last one
    void save_result(const Json & result) const; // result.json
    std::string beside(const std::string & name) const { return folder + "/" + name; }

    Json job;

private:
    std::string path, folder;
    int out; // stdout as it was: file descriptor 1 is stderr from here on, no library can write between our lines
    double said = 0;
};

double now();                  // monotonic seconds
double cpu_seconds();          // of all threads of this process
double wall_minus_monotonic(); // changes when somebody sets the clock
void leave_when_stdin_closes();
void write_atomically(const std::string & path, const std::string & bytes);
void on_threads(int threads, const std::function<void(int)> & work); // work(0) .. work(threads - 1), all at once
