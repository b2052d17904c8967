"""A vector for each image of a collection, in a file; and the images nearest to one."""
