"""All that Optax has, and how each is made. A name is Optax's own, with a remark after a comma where need be."""

import equinox as eqx
import jax
import optax

import eqsparse

MODEL = [eqx.nn.Linear(8, 6, key=jax.random.key(0))]
PARAMETERS = eqx.filter(eqsparse.sparsify(MODEL), eqx.is_inexact_array)

BIASES = jax.tree.map(lambda x: x.ndim < 2, PARAMETERS)
MATRICES = lambda params: jax.tree.map(lambda x: x.ndim == 2, params)
LABELS = lambda params: jax.tree.map(lambda x: "matrices" if x.ndim == 2 else "rest", params)
AS_MATRICES = lambda params: jax.tree.map(lambda x: optax.contrib.MuonDimensionNumbers(), params)
MUON = {"weight_dimension_numbers": AS_MATRICES} if hasattr(optax.contrib, "MuonDimensionNumbers") else {}
EVERY_OTHER = lambda step, **extra: step % 2 == 0

OPTIMISERS = {
    "adabelief": lambda: optax.adabelief(0.02),
    "adadelta": lambda: optax.adadelta(0.5),
    "adafactor, factored": lambda: optax.adafactor(0.02, min_dim_size_to_factor=4, momentum=0.9),
    "adafactor, whole": lambda: optax.adafactor(0.02),
    "adagrad": lambda: optax.adagrad(0.1),
    "adam": lambda: optax.adam(0.02),
    "adamax": lambda: optax.adamax(0.02),
    "adamaxw": lambda: optax.adamaxw(0.02),
    "adamw": lambda: optax.adamw(optax.cosine_decay_schedule(0.05, 10), weight_decay=0.1, nesterov=True),
    "adan": lambda: optax.adan(0.02, weight_decay=0.1),
    "amsgrad": lambda: optax.amsgrad(0.02),
    "fromage": lambda: optax.fromage(0.02),
    "lamb": lambda: optax.lamb(0.02, weight_decay=0.1),
    "lars": lambda: optax.lars(0.02, weight_decay=0.1),
    "lbfgs": lambda: optax.lbfgs(memory_size=3, linesearch=optax.scale_by_zoom_linesearch(4)),
    "lion": lambda: optax.lion(0.02, weight_decay=0.1),
    "nadam": lambda: optax.nadam(0.02),
    "nadamw": lambda: optax.nadamw(0.02),
    "noisy_sgd": lambda: optax.noisy_sgd(0.02, key=0),
    "novograd": lambda: optax.novograd(0.02, weight_decay=0.1),
    "optimistic_adam": lambda: optax.optimistic_adam(0.02, optimism=0.1),
    "optimistic_adam_v2": lambda: optax.optimistic_adam_v2(0.02),
    "optimistic_gradient_descent": lambda: optax.optimistic_gradient_descent(0.02),
    "polyak_sgd": lambda: optax.polyak_sgd(0.1),
    "radam": lambda: optax.radam(0.02),
    "rmsprop": lambda: optax.rmsprop(0.02, centered=True, momentum=0.9, initial_scale=0.5),
    "rprop": lambda: optax.rprop(0.02),
    "sgd": lambda: optax.sgd(0.02, momentum=0.9, nesterov=True),
    "sign_sgd": lambda: optax.sign_sgd(0.02),
    "signum": lambda: optax.signum(0.02),
    "sm3": lambda: optax.sm3(0.02),
    "yogi": lambda: optax.yogi(0.02),
    "contrib.acprop": lambda: optax.contrib.acprop(0.02),
    "contrib.ademamix": lambda: optax.contrib.ademamix(0.02),
    "contrib.adopt": lambda: optax.contrib.adopt(0.02),
    "contrib.cocob": lambda: optax.contrib.cocob(),
    "contrib.dadapt_adamw": lambda: optax.contrib.dadapt_adamw(),
    "contrib.dog": lambda: optax.contrib.dog(),
    "contrib.dowg": lambda: optax.contrib.dowg(init_estim_sq_dist=0.01),
    "contrib.madgrad": lambda: optax.contrib.madgrad(0.02),
    "contrib.mechanize": lambda: optax.contrib.mechanize(optax.adam(0.1), s_init=0.01),
    "contrib.momo": lambda: optax.contrib.momo(0.02),
    "contrib.momo_adam": lambda: optax.contrib.momo_adam(0.02),
    "contrib.muon": lambda: optax.contrib.muon(0.02),
    "contrib.prodigy": lambda: optax.contrib.prodigy(estim_lr0=0.01),
    "contrib.sam": lambda: optax.contrib.sam(
        optax.adam(0.02), optax.chain(optax.contrib.normalize(), optax.sgd(0.05))
    ),
    "contrib.sam, opaque": lambda: optax.contrib.sam(optax.adam(0.02), optax.sgd(0.05), opaque_mode=True),
    "contrib.schedule_free": lambda: optax.contrib.schedule_free(optax.adam(0.02, b1=0.0), 0.02),
    "contrib.schedule_free_adamw": lambda: optax.contrib.schedule_free_adamw(0.02, warmup_steps=3, weight_decay=0.1),
    "contrib.schedule_free_sgd": lambda: optax.contrib.schedule_free_sgd(0.02),
    "contrib.simplified_ademamix": lambda: optax.contrib.simplified_ademamix(0.02),
    "contrib.sophia": lambda: optax.contrib.sophia(0.02, update_interval=3),
}  # fmt: skip

WRAPPERS = {
    "chain": lambda: optax.chain(optax.clip_by_global_norm(0.5), optax.adam(optax.linear_schedule(0.05, 0.01, 5))),
    "named_chain": lambda: optax.named_chain(("clip", optax.clip(0.5)), ("adam", optax.adam(0.02))),
    "MultiSteps": lambda: optax.MultiSteps(optax.adam(0.02), 2),
    "inject_hyperparams": lambda: optax.inject_hyperparams(optax.adamw)(0.02, weight_decay=0.1),
    "inject_hyperparams, schedule": lambda: optax.inject_hyperparams(optax.adam)(optax.cosine_decay_schedule(0.1, 9)),
    "inject_stateful_hyperparams": lambda: optax.inject_stateful_hyperparams(optax.adam)(0.02),
    "masked": lambda: optax.masked(optax.adam(0.02), MATRICES),
    "partition": lambda: optax.partition({"matrices": optax.adam(0.02), "rest": optax.sgd(0.1, momentum=0.9)}, LABELS),
    "multi_transform": lambda: optax.multi_transform({"matrices": optax.adam(0.02), "rest": optax.sgd(0.1)}, LABELS),
    "apply_if_finite": lambda: optax.apply_if_finite(optax.adam(0.02), 3),
    "conditionally_mask": lambda: optax.conditionally_mask(optax.adam(0.02), EVERY_OTHER),
    "conditionally_transform": lambda: optax.conditionally_transform(optax.adam(0.02), EVERY_OTHER),
    "flatten": lambda: optax.flatten(optax.adam(0.02)),
    "with_extra_args_support": lambda: optax.with_extra_args_support(optax.adam(0.02)),
    "contrib.split_real_and_imaginary": lambda: optax.contrib.split_real_and_imaginary(optax.adam(0.02)),
    "contrib.reduce_on_plateau": lambda: optax.chain(
        optax.adam(0.02), optax.contrib.reduce_on_plateau(patience=2, cooldown=1)
    ),
    "scale_by_backtracking_linesearch": lambda: optax.chain(
        optax.sgd(0.5), optax.scale_by_backtracking_linesearch(4, store_grad=True)
    ),
    "apply_every": lambda: optax.chain(optax.adam(0.02), optax.apply_every(2)),
}

# Parts, many to a chain: each part's state is there to look at, and the last step is a small one.
CHAINS = {
    "clipping and moments": {
        "zero_nans": lambda: optax.zero_nans(),
        "clip": lambda: optax.clip(3.0),
        "clip_by_block_rms": lambda: optax.clip_by_block_rms(2.0),
        "adaptive_grad_clip": lambda: optax.adaptive_grad_clip(0.5),
        "add_decayed_weights": lambda: optax.add_decayed_weights(0.1),
        "identity": lambda: optax.identity(),
        "stateless": lambda: optax.stateless(lambda updates, params: updates),
        "stateless_with_tree_map": lambda: optax.stateless_with_tree_map(lambda update, param: update + 0.1 * param),
        "snapshot": lambda: optax.snapshot("norm", optax.tree.norm),
        "ema": lambda: optax.ema(0.9),
        "trace": lambda: optax.trace(0.9),
        "scale_by_adam": lambda: optax.scale_by_adam(),
        "scale_by_adamax": lambda: optax.scale_by_adamax(),
        "scale_by_amsgrad": lambda: optax.scale_by_amsgrad(),
        "scale_by_belief": lambda: optax.scale_by_belief(),
    },
    "more moments": {
        "scale_by_adadelta": lambda: optax.scale_by_adadelta(),
        "scale_by_adan": lambda: optax.scale_by_adan(),
        "scale_by_lion": lambda: optax.scale_by_lion(),
        "scale_by_novograd": lambda: optax.scale_by_novograd(),
        "scale_by_optimistic_gradient": lambda: optax.scale_by_optimistic_gradient(),
        "scale_by_radam": lambda: optax.scale_by_radam(),
        "scale_by_rms": lambda: optax.scale_by_rms(),
        "scale_by_rss": lambda: optax.scale_by_rss(),
        "scale_by_stddev": lambda: optax.scale_by_stddev(),
        "scale_by_yogi": lambda: optax.scale_by_yogi(),
        "contrib.scale_by_acprop": lambda: optax.contrib.scale_by_acprop(),
        "contrib.scale_by_ademamix": lambda: optax.contrib.scale_by_ademamix(),
        "contrib.scale_by_adopt": lambda: optax.contrib.scale_by_adopt(),
        "contrib.scale_by_simplified_ademamix": lambda: optax.contrib.scale_by_simplified_ademamix(),
        "clip_by_global_norm": lambda: optax.clip_by_global_norm(1.0),
        "scale": lambda: optax.scale(-0.1),
    },
    "step sizes": {
        "scale_by_param_block_norm": lambda: optax.scale_by_param_block_norm(),
        "scale_by_param_block_rms": lambda: optax.scale_by_param_block_rms(),
        "scale_by_distance_over_gradients": lambda: optax.scale_by_distance_over_gradients(),
        "scale_by_polyak": lambda: optax.scale_by_polyak(),
        "scale_by_trust_ratio": lambda: optax.scale_by_trust_ratio(),
        "scale_by_rprop": lambda: optax.scale_by_rprop(0.1),
        "scale_by_schedule": lambda: optax.scale_by_schedule(optax.linear_schedule(1.0, 0.1, 5)),
        "scale_by_sign": lambda: optax.scale_by_sign(),
        "freeze": lambda: optax.freeze(BIASES),
        "selective_transform": lambda: optax.selective_transform(optax.adam(0.02), freeze_mask=BIASES),
    },
    "filling in": {
        "centralize": lambda: optax.centralize(),
        "scale_by_factored_rms": lambda: optax.scale_by_factored_rms(min_dim_size_to_factor=4),
        "scale_by_sm3": lambda: optax.scale_by_sm3(),
        "contrib.scale_by_muon": lambda: optax.masked(optax.contrib.scale_by_muon(**MUON), MATRICES),
        "normalize_by_update_norm": lambda: optax.normalize_by_update_norm(),
        "contrib.normalize": lambda: optax.contrib.normalize(),
        "add_noise": lambda: optax.add_noise(0.1, 0.5, 0),
        "trace, of noise": lambda: optax.trace(0.9),
        "scale_by_learning_rate": lambda: optax.scale_by_learning_rate(0.1),
    },
    "history and line search": {
        "scale_by_lbfgs": lambda: optax.scale_by_lbfgs(2),
        "scale, lbfgs": lambda: optax.scale(-1.0),
        "scale_by_zoom_linesearch": lambda: optax.scale_by_zoom_linesearch(4),
    },
    "positions": {"contrib.scale_by_cocob": lambda: optax.contrib.scale_by_cocob()},
    "averages": {"contrib.scale_by_madgrad": lambda: optax.contrib.scale_by_madgrad(0.02)},
    "nonnegative": {
        "sgd, before": lambda: optax.sgd(0.1),
        "keep_params_nonnegative": lambda: optax.keep_params_nonnegative(),
    },
    "nothing": {"set_to_zero": lambda: optax.set_to_zero()},
    "curvature": {
        "contrib.hutchinson_estimator_diag_hessian": lambda: optax.contrib.hutchinson_estimator_diag_hessian(),
        "trace, of curvature": lambda: optax.trace(0.9),
        "scale, of curvature": lambda: optax.scale(-0.01),
    },
}

# What cannot be used in `step`; the test and the docs say why.
UNUSABLE = {
    "lookahead": lambda: optax.lookahead(optax.sgd(0.1), 2, 0.5),
    "monitor": lambda: optax.chain(optax.sgd(0.1), optax.monitor({"norm": optax.tree.norm})),
    "measure_with_ema": lambda: optax.chain(optax.sgd(0.1), optax.measure_with_ema(optax.tree.norm, 0.9)),
    "contrib.differentially_private_aggregate": lambda: optax.chain(
        optax.contrib.differentially_private_aggregate(1.0, 0.1, key=0), optax.scale(-0.1)
    ),
    "contrib.dpsgd": lambda: optax.contrib.dpsgd(0.1, 1.0, 0.1, seed=0),
    "contrib.galore": lambda: optax.contrib.galore(0.02, rank=2),
    "contrib.scale_by_galore": lambda: optax.contrib.scale_by_galore(2),
}

# Arguments that `update` needs.
LINE_SEARCH = ("value", "grad", "value_fn")
EXTRA = {
    "lbfgs": LINE_SEARCH,
    "polyak_sgd": ("value",),
    "scale_by_backtracking_linesearch": LINE_SEARCH,
    "contrib.momo": ("value",),
    "contrib.momo_adam": ("value",),
    "contrib.reduce_on_plateau": ("value",),
    "contrib.sam, opaque": ("grad_fn",),
    "contrib.sophia": ("obj_fn",),
    "step sizes": ("value",),
    "history and line search": LINE_SEARCH,
    "curvature": ("obj_fn",),
}
