// What the kernel tells about this process and the device while something runs.
#pragma once

#include "desk.h"

#include <atomic>
#include <condition_variable>
#include <mutex>
#include <optional>
#include <thread>

std::string stripped(const std::string & text);                 // of blanks at both ends
std::optional<std::string> read_text(const std::string & path); // stripped; nothing when it cannot be read
Json read_counters(const std::vector<std::string> & paths);     // integers, null for one that cannot be read
Json memory(); // bytes of this process: rss_anon, rss_file, vm_hwm, vm_swap, pss, as far as the kernel tells
void pin(const Json & job); // keep to the CPUs of the job; before any thread is started. Raises JobError

// Calls `work` every `interval_s` from a thread of its own until it is destroyed.
class Ticker {
public:
    Ticker(double interval_s, bool at_once, std::function<void()> work);
    ~Ticker();

private:
    std::mutex lock;
    std::condition_variable stopped;
    bool stop = false;
    std::thread thread;
};

// What the device did while one phase ran: seconds, CPU seconds, others' load, clocks, temperatures, rails.
class Stopwatch {
public:
    explicit Stopwatch(const Json & job);
    void start();
    Json stop() const;

private:
    std::vector<std::string> khz, millicelsius, rails;
    Json khz_before, millicelsius_before, rails_before;
    std::optional<long> busy;
    double began = 0, cpu = 0;
};
