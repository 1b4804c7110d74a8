"""`cdl-hf pretrain`, from a checkout: supervised pre-training of a backbone for a domain that has none.

accelerate launch recipes/pretrain.py --dataset my_images --model vit_tiny_patch16_224 --output_dir runs/backbone
"""

from cdl_hf.commands.pretrain import main

if __name__ == "__main__":
    main()
