// WEIT_TARGET_BEGIN(features) … WEIT_TARGET_END: functions in between are compiled for a CPU that has the features.
#pragma once

#define WEIT_PRAGMA(text) _Pragma(#text)
#ifdef __clang__
#define WEIT_TARGET_BEGIN(features) \
  WEIT_PRAGMA(clang attribute push(__attribute__((target(features))), apply_to = function))
#define WEIT_TARGET_END _Pragma("clang attribute pop")
#else
#define WEIT_TARGET_BEGIN(features) _Pragma("GCC push_options") WEIT_PRAGMA(GCC target(features))
#define WEIT_TARGET_END _Pragma("GCC pop_options")
#endif
