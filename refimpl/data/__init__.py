"""From files to arrays.

images          an image file or PIL image -> 8-bit grey or RGB, whatever it was
preprocessing   8-bit images -> what a model reads: size, grey or RGB, mean, standard deviation
idx             one idx file -> array
mnist           a folder of MNIST's idx files -> (images, labels)
archives        a folder, tar or zip -> its files, one after the other, nothing unpacked to disk
datasets        any labelled data set: idx files, or class folders in a folder or archive
segmentation    images with a label for every pixel, in ADE20K's layout
scenes          such a data set made of MNIST's digits
palette         colours of classes, to look at label maps
class_names     what the classes are called, by the name of their folder
image_folder    the files of a folder as an array would be, decoded on demand in processes
bundled         the samples that are shipped inside the package
"""
