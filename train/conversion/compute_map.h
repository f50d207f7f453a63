#pragma once

#include <boost/json/object.hpp>

#include "train/task.h"

namespace switchyard::train {

/// What each token of the task's exhibit() costs with the gates that are set. Throws Error for a model without
/// converted layers. Returns
///
///   {"kind": "text", "method", "setting", "value", "dense_macs", "tokens": [{"text", "macs"}, ...]}, or
///   {"kind": "images", ... the same ..., "images": [{"label", "pixels": [C][H][W], "macs": [rows][columns]}, ...]}
///
/// with the gates named as in sweep(), multiply-adds ("macs") of all moe::convertible_layers, those of the dense model
/// as "dense_macs". The text of a token is empty where its bytes are only the beginning of a character. Rows and
/// columns are those of an image's patches.
boost::json::object compute_map(Task& task);

}  // namespace switchyard::train
