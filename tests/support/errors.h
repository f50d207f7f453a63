#pragma once

#include <gtest/gtest.h>

#include <string>

#include "core/error.h"

namespace switchyard::testing {

/// True when the statement's Error message contains `fragment`; explains itself where not.
template <class F>
::testing::AssertionResult throws_error(F&& statement, const std::string& fragment) {
  try {
    statement();
  } catch (const Error& error) {
    const std::string message = error.what();
    if (message.find(fragment) == std::string::npos)
      return ::testing::AssertionFailure() << "message \"" << message << "\" does not contain \"" << fragment << "\"";
    if (message.find('\n') != std::string::npos)
      return ::testing::AssertionFailure() << "message \"" << message << "\" has more than one line";
    return ::testing::AssertionSuccess();
  } catch (const std::exception& other) {
    return ::testing::AssertionFailure() << "threw something else: " << other.what();
  }
  return ::testing::AssertionFailure() << "did not throw; expected \"" << fragment << "\"";
}

/// The message of the Error that `f` throws; a test failure when it throws none.
template <class F>
std::string error_of(F&& f) {
  try {
    f();
  } catch (const std::exception& error) {
    return error.what();
  }
  ADD_FAILURE() << "expected an error";
  return "";
}

}  // namespace switchyard::testing

/// The statement throws switchyard::Error with a one-line message that contains the fragment.
#define EXPECT_ERROR(statement, fragment) \
  EXPECT_TRUE(::switchyard::testing::throws_error([&] { static_cast<void>(statement); }, fragment)) << #statement
