"""Where the decoder's weights come from: mapped files, tensors, a layer at a time."""
