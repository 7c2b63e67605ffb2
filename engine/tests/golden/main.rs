//! Agreement with Hugging Face's libraries, by what golden/make.py wrote of them.

mod logits;
mod models;
mod splitmix;
mod strings;
mod template;
mod tokenizer;
mod weights;
