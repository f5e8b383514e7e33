// What the tasks `bench` and `energy` share.
#pragma once

#include "engine.h"

// Raises JobError for a prompt or lengths that cannot be run; gives the prompt.
Ids checked_prompt(const Json & job, int vocabulary);
