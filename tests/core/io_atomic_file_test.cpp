#include <gtest/gtest.h>
#include <signal.h>
#include <sys/resource.h>
#include <sys/wait.h>
#include <unistd.h>

#include <string>

#include "core/error.h"
#include "core/io/atomic_file.h"
#include "tests/support/temporary_folder.h"

namespace switchyard {
namespace {

using testing::read_bytes;
using testing::TemporaryFolder;
using testing::write_bytes;

/// Runs `f` in a child process and returns its wait status.
template <class F>
int in_child(F&& f) {
  const pid_t child = ::fork();
  if (child == 0) {
    f();
    ::_exit(0);
  }
  int status = -1;
  ::waitpid(child, &status, 0);
  return status;
}

TEST(AtomicFile, AppendsAndReplaces) {
  TemporaryFolder folder;
  const auto path = folder / "out";
  write_bytes(path, "old");
  const std::string large(3'000'000, 'x');
  {
    AtomicFile file(path);
    file.append("head");
    file.append(large);
    file.append("tail");
    file.append("", 0);
    EXPECT_EQ(file.size(), large.size() + 8);
    EXPECT_EQ(file.checksum(), checksum("head" + large + "tail"));
    file.overwrite(0, "HE", 2);
    file.overwrite(file.size() - 1, "L", 1);
    EXPECT_EQ(read_bytes(path), "old");
    file.commit();
    EXPECT_ERROR(file.append("more"), "already committed");
    EXPECT_ERROR(file.commit(), "already committed");
  }
  EXPECT_EQ(read_bytes(path), "HEad" + large + "taiL");
  EXPECT_EQ(folder.entries(), 1u);
}

TEST(AtomicFile, WithoutCommitNothingHappens) {
  TemporaryFolder folder;
  write_bytes(folder / "out", "old");
  {
    AtomicFile file(folder / "out");
    file.append("new");
    EXPECT_EQ(folder.entries(), 2u);
  }
  EXPECT_EQ(read_bytes(folder / "out"), "old");
  EXPECT_EQ(folder.entries(), 1u);
}

TEST(AtomicFile, EmptyFileAndRelativePath) {
  TemporaryFolder folder;
  const auto before = std::filesystem::current_path();
  std::filesystem::current_path(folder.path());
  write_file("empty", "");
  EXPECT_EQ(read_bytes("empty"), "");
  std::filesystem::current_path(before);
}

TEST(AtomicFile, Failures) {
  TemporaryFolder folder;
  write_bytes(folder / "file", "x");
  std::filesystem::create_directory(folder / "folder");
  write_bytes(folder / "folder/inside", "x");
  EXPECT_ERROR(write_file(folder / "none/out", "x"), "none/out: No such file or directory");
  EXPECT_ERROR(write_file(folder / "file/out", "x"), "file/out: Not a directory");
  EXPECT_ERROR(write_file(folder / "folder", "x"), "cannot rename the temporary file to");
  EXPECT_ERROR(write_file(folder / std::string(300, 'n'), "x"), "File name too long");
  EXPECT_EQ(folder.entries(), 2u);
  AtomicFile file(folder / "out");
  file.append("abc");
  EXPECT_ERROR(file.overwrite(2, "xx", 2), "cannot overwrite bytes 2 + 2 of 3");
}

TEST(AtomicFile, NoPermission) {
  TemporaryFolder folder;
  std::filesystem::permissions(folder.path(), std::filesystem::perms::owner_read | std::filesystem::perms::owner_exec);
  const int status = in_child([&] {
    constexpr uid_t kNobody = 65534;
    if (::geteuid() == 0 && ::seteuid(kNobody) != 0) ::_exit(44);  // root may write anywhere
    try {
      write_file(folder / "out", "x");
    } catch (const Error& error) {
      ::_exit(std::string(error.what()).ends_with("/out: Permission denied") ? 42 : 43);
    }
  });
  ASSERT_TRUE(WIFEXITED(status));
  EXPECT_EQ(WEXITSTATUS(status), 42);
  std::filesystem::permissions(folder.path(), std::filesystem::perms::owner_all);
}

// A limit on the size of files stops the write half-way, as a full disk does.
TEST(AtomicFile, FullDiskKeepsTheOldFileAndRemovesTheTemporary) {
  TemporaryFolder folder;
  write_bytes(folder / "out", "old");
  const int status = in_child([&] {
    ::signal(SIGXFSZ, SIG_IGN);
    const rlimit limit{100'000, 100'000};
    ::setrlimit(RLIMIT_FSIZE, &limit);
    try {
      write_file(folder / "out", std::string(5'000'000, 'x'));
    } catch (const Error& error) {
      const std::string message = error.what();
      const bool named = message.find("cannot write ") != std::string::npos &&
                         message.find("/out (") != std::string::npos &&
                         message.find(": File too large") != message.npos;
      ::_exit(named && folder.entries() == 1 ? 42 : 43);
    }
  });
  ASSERT_TRUE(WIFEXITED(status));
  EXPECT_EQ(WEXITSTATUS(status), 42);
  EXPECT_EQ(read_bytes(folder / "out"), "old");
  EXPECT_EQ(folder.entries(), 1u);
}

TEST(AtomicFile, KilledWriterLeavesTheOldFile) {
  TemporaryFolder folder;
  write_bytes(folder / "out", "old");
  for (int trial = 0; trial < 5; ++trial) {
    const int status = in_child([&] {
      AtomicFile file(folder / "out");
      for (int i = 0; i < 4 + trial; ++i) file.append(std::string(700'000, 'x'));
      ::raise(SIGKILL);
    });
    ASSERT_TRUE(WIFSIGNALED(status));
    EXPECT_EQ(read_bytes(folder / "out"), "old");
  }
  EXPECT_EQ(folder.entries(), 6u);

  // What the killed ones left can be told from a file still being written.
  AtomicFile alive(folder / "alive");
  alive.append("x");
  EXPECT_EQ(remove_abandoned_temporaries(folder.path()), 5u);
  EXPECT_EQ(remove_abandoned_temporaries(folder.path()), 0u);
  alive.commit();
  EXPECT_EQ(read_bytes(folder / "alive"), "x");
  EXPECT_EQ(folder.entries(), 2u);
}

// At whatever moment the writer dies, the file holds one whole version.
TEST(AtomicFile, KilledAtAnyMomentAFileIsWhole) {
  TemporaryFolder folder;
  const auto path = folder / "out";
  const auto content = [](int version) { return std::string(200'000, static_cast<char>('a' + version % 26)); };
  write_file(path, content(0));
  for (int trial = 0; trial < 20; ++trial) {
    const pid_t child = ::fork();
    if (child == 0) {
      for (int version = 1;; ++version) write_file(path, content(version));
    }
    ::usleep(static_cast<useconds_t>(1000 + trial * 700));
    ::kill(child, SIGKILL);
    int status = 0;
    ::waitpid(child, &status, 0);
    const std::string bytes = read_bytes(path);
    ASSERT_EQ(bytes.size(), 200'000u);
    ASSERT_EQ(bytes.find_first_not_of(bytes[0]), std::string::npos);
  }
  remove_abandoned_temporaries(folder.path());
  EXPECT_EQ(folder.entries(), 1u);
}

}  // namespace
}  // namespace switchyard
