"""Named compositions of a task family, an inner loop and an estimator."""

from metaopt.algorithms._adaptation_curves import adaptation_curves
from metaopt.algorithms._amortised import AmortisedTheta, Encoded, amortised
from metaopt.algorithms._anil import anil, boil
from metaopt.algorithms._camel import (
    AffineParams,
    CamelTheta,
    affine_network,
    camel,
    identify,
)
from metaopt.algorithms._disco import DiscoState, disco_rl
from metaopt.algorithms._disco_agent import DiscoAgent, DiscoOutputs, disco_agent
from metaopt.algorithms._disco_rule import DiscoInputs, DiscoRule, DiscoTargets, disco_rule
from metaopt.algorithms._disco_values import DiscoValues
from metaopt.algorithms._diverse_tasks import RelatedTasks, diverse_tasks, k_dpp, task_kernel
from metaopt.algorithms._evolution import (
    EvolutionCounts,
    EvolutionResult,
    behaviour,
    evolve,
    mutate,
)
from metaopt.algorithms._finetune_prototypes import finetune_prototypes
from metaopt.algorithms._good_embedding import Distilled, good_embedding, logistic_regression
from metaopt.algorithms._gradient_regularisation import (
    GradientRegularisationTheta,
    LowRank,
    gradient_regularisation,
)
from metaopt.algorithms._imaml import imaml
from metaopt.algorithms._interference import interference, online
from metaopt.algorithms._interval_bounds import Bounds, interval_bounds, interval_maml
from metaopt.algorithms._interval_tasks import (
    BoundedTask,
    BoxedInputs,
    interval_tasks,
    mix_bounds,
)
from metaopt.algorithms._learned_loss import LearnedLossTheta, learned_loss
from metaopt.algorithms._learned_policy_gradient import (
    LPGAgent,
    LPGRule,
    LPGState,
    LPGTargets,
    learned_policy_gradient,
    lpg_agent,
    lpg_rule,
)
from metaopt.algorithms._learner import Episode, FewShotScores, MetaLearner, few_shot_scores
from metaopt.algorithms._loss_weights import LossWeightsTheta, loss_weights, support_weights
from metaopt.algorithms._maml import adapt, maml
from metaopt.algorithms._maml_plus_plus import (
    MAMLPlusPlusState,
    MAMLPlusPlusTheta,
    maml_plus_plus,
)
from metaopt.algorithms._maml_rl import maml_rl
from metaopt.algorithms._meta_curvature import MetaCurvatureTheta, meta_curvature
from metaopt.algorithms._meta_gradient_rl import (
    ActorCritic,
    ReturnTheta,
    meta_gradient_rl,
    return_settings,
    return_theta,
)
from metaopt.algorithms._meta_modulation import (
    ModulatedTheta,
    Modulation,
    meta_modulation,
    modulate,
)
from metaopt.algorithms._meta_sgd import MetaSGDTheta, meta_sgd
from metaopt.algorithms._mlti import MixedInputs, MixedTask, mix_hidden, mlti
from metaopt.algorithms._npbml import NPBMLTheta, npbml
from metaopt.algorithms._policy_gradient import PolicyGradientInfo, policy_gradient
from metaopt.algorithms._proto_transfer import proto_transfer
from metaopt.algorithms._prototypes import cosine_head, prototype_head, prototypes
from metaopt.algorithms._reptile import reptile
from metaopt.algorithms._returns import lambda_returns
from metaopt.algorithms._running_prototypes import running_prototypes
from metaopt.algorithms._search import SearchState, search
from metaopt.algorithms._step_statistics import batch_norm_leaves, step_statistics
from metaopt.algorithms._stream import StreamLearner, continued, memory_ratio, through_stream
from metaopt.algorithms._t_net import linear_warps, t_net
from metaopt.algorithms._transductive import (
    Clusters,
    Remembered,
    Transduction,
    soft_clusters,
    transductive,
)
from metaopt.algorithms._visual_prompts import (
    ClusteredTask,
    FeatureClusters,
    feature_clusters,
    prompted,
    visual_prompts,
)
from metaopt.algorithms._warp_grad import Warped, warp_grad

__all__ = [
    "ActorCritic",
    "AffineParams",
    "AmortisedTheta",
    "BoundedTask",
    "Bounds",
    "BoxedInputs",
    "CamelTheta",
    "ClusteredTask",
    "Clusters",
    "DiscoAgent",
    "DiscoInputs",
    "DiscoOutputs",
    "DiscoRule",
    "DiscoState",
    "DiscoTargets",
    "DiscoValues",
    "Distilled",
    "Encoded",
    "Episode",
    "EvolutionCounts",
    "EvolutionResult",
    "FeatureClusters",
    "FewShotScores",
    "GradientRegularisationTheta",
    "LPGAgent",
    "LPGRule",
    "LPGState",
    "LPGTargets",
    "LearnedLossTheta",
    "LossWeightsTheta",
    "LowRank",
    "MAMLPlusPlusState",
    "MAMLPlusPlusTheta",
    "MetaCurvatureTheta",
    "MetaLearner",
    "MetaSGDTheta",
    "MixedInputs",
    "MixedTask",
    "ModulatedTheta",
    "Modulation",
    "NPBMLTheta",
    "PolicyGradientInfo",
    "RelatedTasks",
    "Remembered",
    "ReturnTheta",
    "SearchState",
    "StreamLearner",
    "Transduction",
    "Warped",
    "adapt",
    "adaptation_curves",
    "affine_network",
    "amortised",
    "anil",
    "batch_norm_leaves",
    "behaviour",
    "boil",
    "camel",
    "continued",
    "cosine_head",
    "disco_agent",
    "disco_rl",
    "disco_rule",
    "diverse_tasks",
    "evolve",
    "feature_clusters",
    "few_shot_scores",
    "finetune_prototypes",
    "good_embedding",
    "gradient_regularisation",
    "identify",
    "imaml",
    "interference",
    "interval_bounds",
    "interval_maml",
    "interval_tasks",
    "k_dpp",
    "lambda_returns",
    "learned_loss",
    "learned_policy_gradient",
    "linear_warps",
    "logistic_regression",
    "loss_weights",
    "lpg_agent",
    "lpg_rule",
    "maml",
    "maml_plus_plus",
    "maml_rl",
    "memory_ratio",
    "meta_curvature",
    "meta_gradient_rl",
    "meta_modulation",
    "meta_sgd",
    "mix_bounds",
    "mix_hidden",
    "mlti",
    "modulate",
    "mutate",
    "npbml",
    "online",
    "policy_gradient",
    "prompted",
    "proto_transfer",
    "prototype_head",
    "prototypes",
    "reptile",
    "return_settings",
    "return_theta",
    "running_prototypes",
    "search",
    "soft_clusters",
    "step_statistics",
    "support_weights",
    "t_net",
    "task_kernel",
    "through_stream",
    "transductive",
    "visual_prompts",
    "warp_grad",
]
