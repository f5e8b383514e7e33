// The tasks; results have the shapes that runtimes/base.py checks.
#pragma once

#include "desk.h"

Json bench(Desk & desk);
Json energy(Desk & desk);
Json ceilings(Desk & desk);
Json score(Desk & desk);
Json generate(Desk & desk);
