#include "train/tasks/open.h"

#include "train/conversion/conversion.h"
#include "train/run_folder.h"
#include "train/tasks/language_model_task.h"

namespace switchyard::train {

std::unique_ptr<Task> open_task(const std::filesystem::path& run, const TaskOptions& options,
                                const std::function<void(const std::string&)>& report) {
  if (is_conversion_config(RunFolder::read_config_object(run))) return load_converted(run, options, report);
  return std::make_unique<LanguageModelTask>(run, options, report);
}

}  // namespace switchyard::train
