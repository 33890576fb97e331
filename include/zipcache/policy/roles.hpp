// The roles that a set of policies fills, in the order in which data meets them.
#pragma once

namespace zipcache {

struct key_quantizer_role {};    ///< how keys are encoded, and in how many bits each class
struct value_quantizer_role {};  ///< the same for values
struct saliency_role {};         ///< how attention mass becomes a score
struct scope_role {};            ///< over which heads scores are shared
struct probe_role {};            ///< which query rows are looked at
struct budget_role {};           ///< how many tokens are salient
struct sink_role {};             ///< which first tokens stay in 16 bits
struct schedule_role {};         ///< when the window is compressed

}  // namespace zipcache
