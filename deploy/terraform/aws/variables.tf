variable "name" {
  description = "What the group is called."
  type        = string
  default     = "nodes"
}

variable "model" {
  description = "The model to serve, as `banyan node run --model` takes it."
  type        = string
}

variable "etcd" {
  description = "The registry's endpoints."
  type        = list(string)
}

variable "cluster" {
  description = "The cluster's name in the registry."
  type        = string
  default     = "default"
}

variable "parent" {
  description = "The parent of all of these nodes."
  type        = string
  default     = "root"
}

variable "environment" {
  description = "Further settings, such as { BANYAN_DTYPE = \"q8\" }."
  type        = map(string)
  default     = {}
}

variable "release_url" {
  description = "Where the archive lies that deploy/release.sh makes."
  type        = string
}

variable "release_sha256" {
  description = "Its checksum, from SHA256SUMS."
  type        = string

  validation {
    condition     = can(regex("^[0-9a-f]{64}$", var.release_sha256))
    error_message = "A SHA-256 has 64 hexadecimal digits."
  }
}

variable "image_id" {
  description = "A Linux image with systemd and curl; for GPUs one with NVIDIA's driver."
  type        = string
}

variable "instance_types" {
  description = "Kinds of instances that will do; the more there are, the seldomer all of them are taken."
  type        = list(string)
  default     = ["c7i.2xlarge", "c7a.2xlarge", "c6i.2xlarge", "m7i.2xlarge"]
}

variable "min" {
  description = "Instances at least."
  type        = number
  default     = 1
}

variable "max" {
  description = "Instances at most."
  type        = number
  default     = 10
}

variable "on_demand" {
  description = "How many of them are never taken away."
  type        = number
  default     = 0
}

variable "disk_gb" {
  description = "For the model, in GB."
  type        = number
  default     = 40
}

variable "vpc_id" {
  description = "The network."
  type        = string
}

variable "subnet_ids" {
  description = "Subnets, in several zones."
  type        = list(string)
}

variable "tree_cidrs" {
  description = "From where the rest of the tree dials these nodes."
  type        = list(string)
}

variable "tags" {
  description = "Further tags."
  type        = map(string)
  default     = {}
}
