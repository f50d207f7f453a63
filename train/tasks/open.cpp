#include "train/tasks/open.h"

#include "train/conversion/conversion.h"
#include "train/run_folder.h"
#include "train/tasks/classification_task.h"
#include "train/tasks/language_model_task.h"

namespace switchyard::train {

std::unique_ptr<Task> open_task(const std::filesystem::path& run, const TaskOptions& options,
                                const std::function<void(const std::string&)>& report) {
  const boost::json::object config = RunFolder::read_config_object(run);
  if (is_conversion_config(config)) return load_converted(run, options, report);
  if (is_classifier_config(config)) return open_classification_task(run, options, report);
  return std::make_unique<LanguageModelTask>(run, options, report);
}

}  // namespace switchyard::train
