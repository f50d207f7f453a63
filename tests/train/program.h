#pragma once

#include <fcntl.h>
#include <gtest/gtest.h>
#include <signal.h>
#include <sys/wait.h>
#include <unistd.h>

#include <filesystem>
#include <string>
#include <vector>

#include "tests/support/temporary_folder.h"

namespace switchyard::train {

/// One of the example programs, running with its output in files.
class Program {
 public:
  /// Starts build/.../bin/<name>. `environment` entries ("STEPS=3") are added to this process's.
  Program(const std::string& name, const std::vector<std::string>& arguments,
          const std::vector<std::string>& environment = {}) {
    const std::string path = path_of(name), out = (folder_ / "out").string(), err = (folder_ / "err").string();
    std::vector<char*> argv = {const_cast<char*>(path.c_str())};
    for (const std::string& argument : arguments) argv.push_back(const_cast<char*>(argument.c_str()));
    argv.push_back(nullptr);
    process_ = ::fork();
    if (process_ != 0) return;
    for (const std::string& entry : environment) ::putenv(const_cast<char*>(entry.c_str()));
    ::putenv(const_cast<char*>("OMP_NUM_THREADS=1"));  // tiny models: a second thread would only wait
    ::dup2(::open(out.c_str(), O_WRONLY | O_CREAT | O_TRUNC, 0600), STDOUT_FILENO);
    ::dup2(::open(err.c_str(), O_WRONLY | O_CREAT | O_TRUNC, 0600), STDERR_FILENO);
    ::execv(path.c_str(), argv.data());
    ::_exit(127);
  }
  ~Program() {
    send(SIGKILL);
    wait();
  }
  Program(const Program&) = delete;
  Program& operator=(const Program&) = delete;

  static std::string path_of(const std::string& name) { return SWITCHYARD_BINARY_DIR "/bin/" + name; }
  static bool exists(const std::string& name) { return std::filesystem::exists(path_of(name)); }

  void send(int signal) {
    if (process_ > 0) ::kill(process_, signal);
  }
  /// The exit code, or minus the signal that ended it.
  int wait() {
    if (process_ <= 0) return code_;
    int status = 0;
    ::waitpid(process_, &status, 0);
    process_ = -1;
    code_ = WIFEXITED(status) ? WEXITSTATUS(status) : -WTERMSIG(status);
    return code_;
  }
  std::string out() const { return testing::read_bytes(folder_ / "out"); }
  std::string err() const { return testing::read_bytes(folder_ / "err"); }

 private:
  testing::TemporaryFolder folder_;
  pid_t process_ = -1;
  int code_ = 0;
};

}  // namespace switchyard::train
