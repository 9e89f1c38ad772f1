#pragma once

// What Swift cannot import from C: macros, variadic calls, structures that end in an array, inline assembly,
// signal contexts. No logic lives here.

#include "CHostKVM.h"
#include "CHostMemory.h"
#include "CHostProcessor.h"
#include "CHostSignal.h"
#include "CHostSystem.h"
#include "CHostThread.h"
