#pragma once

// Everything of the nn floor.

#include "nn/attention.h"
#include "nn/dropout.h"
#include "nn/embedding.h"
#include "nn/encoder.h"
#include "nn/feed_forward.h"
#include "nn/init.h"
#include "nn/layer.h"
#include "nn/linear.h"
#include "nn/module.h"
#include "nn/norm.h"
#include "nn/optim/adamw.h"
#include "nn/optim/clip.h"
#include "nn/optim/optimizer.h"
#include "nn/optim/schedule.h"
#include "nn/optim/sgd.h"
#include "nn/position.h"
#include "nn/sampling.h"
#include "nn/text_classifier.h"
#include "nn/transformer.h"
#include "nn/vision_transformer.h"
