# Words that are put before the commands that train and decode, for instance
# "srun --gpus 1" or "nice". Nothing: run them here.
train_cmd=
decode_cmd=
