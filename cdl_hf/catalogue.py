"""The catalogue: every prompt method, distillation method and classifier once, with its name and its papers.

The arguments' choices, `--help`, the model cards and the reports read it. A method of your own is registered here
under the key of its class: `PROMPT_METHODS["shared"] = Method("Shared", "one prompt for all images")`. Tables show the
methods in this order.

Only the standard library is imported.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Paper:
    """A paper to cite.

    Args:
        arxiv: Its number on arXiv, such as `2407.13911`.
        bibtex: Its entry in a bibliography.
    """

    arxiv: str
    bibtex: str

    @property
    def url(self) -> str:
        return f"https://arxiv.org/abs/{self.arxiv}"


@dataclass(frozen=True)
class Method:
    """A prompt method, a distillation method or a classifier.

    Args:
        title: Its name in tables and sentences.
        description: What it is, in a phrase that can follow the title and a colon.
        paper: Where it was published; `None` for what needs no source.
        builds_on: Further papers to cite.
    """

    title: str
    description: str = ""
    paper: Paper | None = None
    builds_on: tuple[Paper, ...] = ()

    def __str__(self) -> str:
        """As `--help` shows it."""
        return f"{self.title}: {self.description}" if self.description else self.title

    @property
    def papers(self) -> tuple[Paper, ...]:
        """What to cite: the papers that it builds on last."""
        return (*([] if self.paper is None else [self.paper]), *self.builds_on)


_L2P = Paper(
    "2112.08654",
    """\
@inproceedings{wang2022l2p,
  title     = {Learning to Prompt for Continual Learning},
  author    = {Wang, Zifeng and Zhang, Zizhao and Lee, Chen-Yu and Zhang, Han and Sun, Ruoxi and Ren, Xiaoqi and
               Su, Guolong and Perot, Vincent and Dy, Jennifer and Pfister, Tomas},
  booktitle = {Proceedings of the IEEE/CVF Conference on Computer Vision and Pattern Recognition (CVPR)},
  year      = {2022},
  note      = {arXiv:2112.08654},
}""",
)
_DUALPROMPT = Paper(
    "2204.04799",
    """\
@inproceedings{wang2022dualprompt,
  title     = {{DualPrompt}: Complementary Prompting for Rehearsal-free Continual Learning},
  author    = {Wang, Zifeng and Zhang, Zizhao and Ebrahimi, Sayna and Sun, Ruoxi and Zhang, Han and Lee, Chen-Yu and
               Ren, Xiaoqi and Su, Guolong and Perot, Vincent and Dy, Jennifer and Pfister, Tomas},
  booktitle = {European Conference on Computer Vision (ECCV)},
  year      = {2022},
  note      = {arXiv:2204.04799},
}""",
)
_CODA_PROMPT = Paper(
    "2211.13218",
    """\
@inproceedings{smith2023coda,
  title     = {{CODA-Prompt}: {COntinual} Decomposed Attention-based Prompting for Rehearsal-Free Continual Learning},
  author    = {Smith, James Seale and Karlinsky, Leonid and Gutta, Vyshnavi and Cascante-Bonilla, Paola and
               Kim, Donghyun and Arbelle, Assaf and Panda, Rameswar and Feris, Rogerio and Kira, Zsolt},
  booktitle = {Proceedings of the IEEE/CVF Conference on Computer Vision and Pattern Recognition (CVPR)},
  year      = {2023},
  note      = {arXiv:2211.13218},
}""",
)
_APT = Paper(
    "2503.07979",
    """\
@inproceedings{chen2025apt,
  title     = {Achieving More with Less: Additive Prompt Tuning for Rehearsal-Free Class-Incremental Learning},
  author    = {Chen, Haoran and Wang, Ping and Zhou, Zihan and Zhang, Xu and Wu, Zuxuan and Jiang, Yu-Gang},
  booktitle = {Proceedings of the IEEE/CVF International Conference on Computer Vision (ICCV)},
  year      = {2025},
  note      = {arXiv:2503.07979},
}""",
)
_LORA = Paper(
    "2106.09685",
    """\
@inproceedings{hu2022lora,
  title     = {{LoRA}: Low-Rank Adaptation of Large Language Models},
  author    = {Hu, Edward J. and Shen, Yelong and Wallis, Phillip and Allen-Zhu, Zeyuan and Li, Yuanzhi and Wang, Shean
               and Wang, Lu and Chen, Weizhu},
  booktitle = {International Conference on Learning Representations (ICLR)},
  year      = {2022},
  note      = {arXiv:2106.09685},
}""",
)
_PERTURB_AND_MERGE = Paper(
    "2505.22389",
    """\
@inproceedings{qiu2025pm,
  title     = {Train with Perturbation, Infer after Merging: A Two-Stage Framework for Continual Learning},
  author    = {Qiu, Haomiao and Zhang, Miao and Qiao, Ziyue and Nie, Liqiang},
  booktitle = {Advances in Neural Information Processing Systems (NeurIPS)},
  year      = {2025},
  note      = {arXiv:2505.22389},
}""",
)
_CDL = Paper(
    "2407.13911",
    """\
@article{zhang2024cdl,
  title   = {Continual Distillation Learning: Knowledge Distillation in Prompt-based Continual Learning},
  author  = {Zhang, Qifan and Guo, Yunhui and Xiang, Yu},
  journal = {arXiv preprint arXiv:2407.13911},
  year    = {2024},
}""",
)
_KD = Paper(
    "1503.02531",
    """\
@article{hinton2015distilling,
  title   = {Distilling the Knowledge in a Neural Network},
  author  = {Hinton, Geoffrey and Vinyals, Oriol and Dean, Jeff},
  journal = {arXiv preprint arXiv:1503.02531},
  year    = {2015},
}""",
)
_DKD = Paper(
    "2203.08679",
    """\
@inproceedings{zhao2022dkd,
  title     = {Decoupled Knowledge Distillation},
  author    = {Zhao, Borui and Cui, Quan and Song, Renjie and Qiu, Yiyu and Liang, Jiajun},
  booktitle = {Proceedings of the IEEE/CVF Conference on Computer Vision and Pattern Recognition (CVPR)},
  year      = {2022},
  note      = {arXiv:2203.08679},
}""",
)
_FITNETS = Paper(
    "1412.6550",
    """\
@inproceedings{romero2015fitnets,
  title     = {{FitNets}: Hints for Thin Deep Nets},
  author    = {Romero, Adriana and Ballas, Nicolas and Kahou, Samira Ebrahimi and Chassang, Antoine and
               Gatta, Carlo and Bengio, Yoshua},
  booktitle = {International Conference on Learning Representations (ICLR)},
  year      = {2015},
  note      = {arXiv:1412.6550},
}""",
)
_REVIEWKD = Paper(
    "2104.09044",
    """\
@inproceedings{chen2021reviewkd,
  title     = {Distilling Knowledge via Knowledge Review},
  author    = {Chen, Pengguang and Liu, Shu and Zhao, Hengshuang and Jia, Jiaya},
  booktitle = {Proceedings of the IEEE/CVF Conference on Computer Vision and Pattern Recognition (CVPR)},
  year      = {2021},
  note      = {arXiv:2104.09044},
}""",
)
_DEIT = Paper(
    "2012.12877",
    """\
@inproceedings{touvron2021deit,
  title     = {Training data-efficient image transformers \\& distillation through attention},
  author    = {Touvron, Hugo and Cord, Matthieu and Douze, Matthijs and Massa, Francisco and
               Sablayrolles, Alexandre and J{\\'e}gou, Herv{\\'e}},
  booktitle = {International Conference on Machine Learning (ICML)},
  year      = {2021},
  note      = {arXiv:2012.12877},
}""",
)
_SIMPLECIL = Paper(
    "2303.07338",
    """\
@article{zhou2024simplecil,
  title   = {Revisiting Class-Incremental Learning with Pre-Trained Models: Generalizability and Adaptivity are All You
             Need},
  author  = {Zhou, Da-Wei and Cai, Zi-Wen and Ye, Han-Jia and Zhan, De-Chuan and Liu, Ziwei},
  journal = {International Journal of Computer Vision},
  year    = {2024},
  note    = {arXiv:2303.07338},
}""",
)
_RANPAC = Paper(
    "2307.02251",
    """\
@inproceedings{mcdonnell2023ranpac,
  title     = {{RanPAC}: Random Projections and Pre-trained Models for Continual Learning},
  author    = {McDonnell, Mark D. and Gong, Dong and Parvaneh, Amin and Abbasnejad, Ehsan and van den Hengel, Anton},
  booktitle = {Advances in Neural Information Processing Systems (NeurIPS)},
  year      = {2023},
  note      = {arXiv:2307.02251},
}""",
)
_SLCA = Paper(
    "2303.05118",
    """\
@inproceedings{zhang2023slca,
  title     = {{SLCA}: Slow Learner with Classifier Alignment for Continual Learning on a Pre-trained Model},
  author    = {Zhang, Gengwei and Wang, Liyuan and Kang, Guoliang and Chen, Ling and Wei, Yunchao},
  booktitle = {Proceedings of the IEEE/CVF International Conference on Computer Vision (ICCV)},
  year      = {2023},
  note      = {arXiv:2303.05118},
}""",
)
_LSKD = Paper(
    "2403.01427",
    """\
@inproceedings{sun2024lskd,
  title     = {Logit Standardization in Knowledge Distillation},
  author    = {Sun, Shangquan and Ren, Wenqi and Li, Jingzhi and Wang, Rui and Cao, Xiaochun},
  booktitle = {Proceedings of the IEEE/CVF Conference on Computer Vision and Pattern Recognition (CVPR)},
  year      = {2024},
  note      = {arXiv:2403.01427},
}""",
)
_DIST = Paper(
    "2205.10536",
    """\
@inproceedings{huang2022dist,
  title     = {Knowledge Distillation from A Stronger Teacher},
  author    = {Huang, Tao and You, Shan and Wang, Fei and Qian, Chen and Xu, Chang},
  booktitle = {Advances in Neural Information Processing Systems (NeurIPS)},
  year      = {2022},
  note      = {arXiv:2205.10536},
}""",
)
_SIMKD = Paper(
    "2203.14001",
    """\
@inproceedings{chen2022simkd,
  title     = {Knowledge Distillation with the Reused Teacher Classifier},
  author    = {Chen, Defang and Mei, Jian-Ping and Zhang, Hailin and Wang, Can and Feng, Yan and Chen, Chun},
  booktitle = {Proceedings of the IEEE/CVF Conference on Computer Vision and Pattern Recognition (CVPR)},
  year      = {2022},
  note      = {arXiv:2203.14001},
}""",
)

PROMPT_METHODS: dict[str, Method] = {
    "l2p": Method("L2P", "the prompts of a pool nearest to the query of the image", _L2P),
    "dualprompt": Method("DualPrompt", "prompts shared by all tasks and prompts of each task", _DUALPROMPT),
    "coda_prompt": Method("CODA-Prompt", "a sum of prompt components weighted for each image", _CODA_PROMPT),
    "apt": Method("APT", "a key and a value added to the CLS token's, merged after each task", _APT),
    "lora": Method(
        "LoRA", "low-rank weight updates, averaged after each task", _LORA, builds_on=(_PERTURB_AND_MERGE,)
    ),
    "none": Method("no prompts", "the frozen backbone, a baseline"),
}

# The weighted sum of the losses of Hinton et al. is part of all methods that cite it.
DISTILLATION_METHODS: dict[str, Method] = {
    "none": Method("no distillation", "the student learns alone"),
    "kd": Method("KD", "knowledge distillation of the logits", _KD),
    "dkd": Method("DKD", "decoupled KD, which weighs the target class and the others apart", _DKD),
    "lskd": Method("LSKD", "KD of standardized logits", _LSKD, (_KD,)),
    "dist": Method("DIST", "correlations of predictions within images and within classes", _DIST),
    "fitnets": Method("FitNets", "KD and hints from the features of the last block", _FITNETS, (_KD,)),
    "reviewkd": Method("ReviewKD", "KD and a review of the features of all blocks", _REVIEWKD, (_KD,)),
    "features": Method(
        "frozen features", "the teacher's frozen class token, matched through a linear map by cosine", _FITNETS
    ),
    "deit": Method("DeiT token", "KD through a distillation token with its own head", _DEIT, (_KD,)),
    "kdp": Method("KDP", "KD through knowledge distillation prompts with their own head", _CDL, (_KD,)),
    "cdl_prompt": Method("CDL-Prompt", "KD through prompts mapped from the teacher's", _CDL, (_KD,)),
    "analytic": Method(
        "analytic distillation",
        "the teacher's classifier on its features as predicted by ridge regression",
        builds_on=(_SIMKD, _RANPAC),
    ),
}

CLASSIFIERS: dict[str, Method] = {
    "linear": Method("trained head", "linear, trained with the prompts"),
    "ncm": Method("nearest class mean", "cosine to the mean feature of each class", _SIMPLECIL),
    "ranpac": Method("RanPAC", "ridge regression on random projections of the features", _RANPAC),
}
# `classifier_alignment` with the linear classifier
ALIGNED_HEAD = Method("aligned head", "trained again after each task on features sampled for all classes", _SLCA)

CONTINUAL_DISTILLATION = _CDL  # the paper of the task itself


def prompt_method_of(args: Mapping[str, Any], role: str) -> str:
    """Key of the prompt method of a run's `"teacher"` or `"student"`, by its arguments."""
    return (role == "teacher" and args.get("teacher_prompt_method")) or args["prompt_method"]


def method_of(table: Mapping[str, Method], key: str) -> Method:
    """The entry, or for a method that is not registered one with its key as title."""
    return table.get(key, Method(key))
