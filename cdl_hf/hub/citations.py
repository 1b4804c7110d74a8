"""BibTeX of the papers whose methods a model uses."""

CITATIONS = {
    "l2p": """\
@inproceedings{wang2022l2p,
  title     = {Learning to Prompt for Continual Learning},
  author    = {Wang, Zifeng and Zhang, Zizhao and Lee, Chen-Yu and Zhang, Han and Sun, Ruoxi and Ren, Xiaoqi and
               Su, Guolong and Perot, Vincent and Dy, Jennifer and Pfister, Tomas},
  booktitle = {Proceedings of the IEEE/CVF Conference on Computer Vision and Pattern Recognition (CVPR)},
  year      = {2022},
  note      = {arXiv:2112.08654},
}""",
    "dualprompt": """\
@inproceedings{wang2022dualprompt,
  title     = {{DualPrompt}: Complementary Prompting for Rehearsal-free Continual Learning},
  author    = {Wang, Zifeng and Zhang, Zizhao and Ebrahimi, Sayna and Sun, Ruoxi and Zhang, Han and Lee, Chen-Yu and
               Ren, Xiaoqi and Su, Guolong and Perot, Vincent and Dy, Jennifer and Pfister, Tomas},
  booktitle = {European Conference on Computer Vision (ECCV)},
  year      = {2022},
  note      = {arXiv:2204.04799},
}""",
    "coda_prompt": """\
@inproceedings{smith2023coda,
  title     = {{CODA-Prompt}: {COntinual} Decomposed Attention-based Prompting for Rehearsal-Free Continual Learning},
  author    = {Smith, James Seale and Karlinsky, Leonid and Gutta, Vyshnavi and Cascante-Bonilla, Paola and
               Kim, Donghyun and Arbelle, Assaf and Panda, Rameswar and Feris, Rogerio and Kira, Zsolt},
  booktitle = {Proceedings of the IEEE/CVF Conference on Computer Vision and Pattern Recognition (CVPR)},
  year      = {2023},
  note      = {arXiv:2211.13218},
}""",
    "apt": """\
@inproceedings{chen2025apt,
  title     = {Achieving More with Less: Additive Prompt Tuning for Rehearsal-Free Class-Incremental Learning},
  author    = {Chen, Haoran and Wang, Ping and Zhou, Zihan and Zhang, Xu and Wu, Zuxuan and Jiang, Yu-Gang},
  booktitle = {Proceedings of the IEEE/CVF International Conference on Computer Vision (ICCV)},
  year      = {2025},
  note      = {arXiv:2503.07979},
}""",
    "cdl": """\
@article{zhang2024cdl,
  title   = {Continual Distillation Learning: Knowledge Distillation in Prompt-based Continual Learning},
  author  = {Zhang, Qifan and Guo, Yunhui and Xiang, Yu},
  journal = {arXiv preprint arXiv:2407.13911},
  year    = {2024},
}""",
    "kd": """\
@article{hinton2015distilling,
  title   = {Distilling the Knowledge in a Neural Network},
  author  = {Hinton, Geoffrey and Vinyals, Oriol and Dean, Jeff},
  journal = {arXiv preprint arXiv:1503.02531},
  year    = {2015},
}""",
    "dkd": """\
@inproceedings{zhao2022dkd,
  title     = {Decoupled Knowledge Distillation},
  author    = {Zhao, Borui and Cui, Quan and Song, Renjie and Qiu, Yiyu and Liang, Jiajun},
  booktitle = {Proceedings of the IEEE/CVF Conference on Computer Vision and Pattern Recognition (CVPR)},
  year      = {2022},
  note      = {arXiv:2203.08679},
}""",
    "fitnets": """\
@inproceedings{romero2015fitnets,
  title     = {{FitNets}: Hints for Thin Deep Nets},
  author    = {Romero, Adriana and Ballas, Nicolas and Kahou, Samira Ebrahimi and Chassang, Antoine and
               Gatta, Carlo and Bengio, Yoshua},
  booktitle = {International Conference on Learning Representations (ICLR)},
  year      = {2015},
  note      = {arXiv:1412.6550},
}""",
    "reviewkd": """\
@inproceedings{chen2021reviewkd,
  title     = {Distilling Knowledge via Knowledge Review},
  author    = {Chen, Pengguang and Liu, Shu and Zhao, Hengshuang and Jia, Jiaya},
  booktitle = {Proceedings of the IEEE/CVF Conference on Computer Vision and Pattern Recognition (CVPR)},
  year      = {2021},
  note      = {arXiv:2104.09044},
}""",
    "deit": """\
@inproceedings{touvron2021deit,
  title     = {Training data-efficient image transformers \\& distillation through attention},
  author    = {Touvron, Hugo and Cord, Matthieu and Douze, Matthijs and Massa, Francisco and
               Sablayrolles, Alexandre and J{\\'e}gou, Herv{\\'e}},
  booktitle = {International Conference on Machine Learning (ICML)},
  year      = {2021},
  note      = {arXiv:2012.12877},
}""",
    "simplecil": """\
@article{zhou2024simplecil,
  title   = {Revisiting Class-Incremental Learning with Pre-Trained Models: Generalizability and Adaptivity are All You
             Need},
  author  = {Zhou, Da-Wei and Cai, Zi-Wen and Ye, Han-Jia and Zhan, De-Chuan and Liu, Ziwei},
  journal = {International Journal of Computer Vision},
  year    = {2024},
  note    = {arXiv:2303.07338},
}""",
    "ranpac": """\
@inproceedings{mcdonnell2023ranpac,
  title     = {{RanPAC}: Random Projections and Pre-trained Models for Continual Learning},
  author    = {McDonnell, Mark D. and Gong, Dong and Parvaneh, Amin and Abbasnejad, Ehsan and van den Hengel, Anton},
  booktitle = {Advances in Neural Information Processing Systems (NeurIPS)},
  year      = {2023},
  note      = {arXiv:2307.02251},
}""",
    "slca": """\
@inproceedings{zhang2023slca,
  title     = {{SLCA}: Slow Learner with Classifier Alignment for Continual Learning on a Pre-trained Model},
  author    = {Zhang, Gengwei and Wang, Liyuan and Kang, Guoliang and Chen, Ling and Wei, Yunchao},
  booktitle = {Proceedings of the IEEE/CVF International Conference on Computer Vision (ICCV)},
  year      = {2023},
  note      = {arXiv:2303.05118},
}""",
    "lskd": """\
@inproceedings{sun2024lskd,
  title     = {Logit Standardization in Knowledge Distillation},
  author    = {Sun, Shangquan and Ren, Wenqi and Li, Jingzhi and Wang, Rui and Cao, Xiaochun},
  booktitle = {Proceedings of the IEEE/CVF Conference on Computer Vision and Pattern Recognition (CVPR)},
  year      = {2024},
  note      = {arXiv:2403.01427},
}""",
    "dist": """\
@inproceedings{huang2022dist,
  title     = {Knowledge Distillation from A Stronger Teacher},
  author    = {Huang, Tao and You, Shan and Wang, Fei and Qian, Chen and Xu, Chang},
  booktitle = {Advances in Neural Information Processing Systems (NeurIPS)},
  year      = {2022},
  note      = {arXiv:2205.10536},
}""",
}
