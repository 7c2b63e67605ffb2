# Nodes of one model on Amazon's spot instances. They join a tree that runs elsewhere (its registry and its roots must be reachable
# from the subnets), and leave it by a drain when Amazon takes an instance away: it says so two minutes ahead.
#
# Each instance is a node that is called after its instance: i-0123456789abcdef0.

terraform {
  required_version = ">= 1.6"
  required_providers {
    aws = {
      source  = "hashicorp/aws"
      version = ">= 5.50, < 7.0"
    }
  }
}

locals {
  name = "banyan-${var.name}"
  tags = merge(var.tags, { Name = local.name, "banyan:model" = var.model })
}

resource "aws_security_group" "nodes" {
  name_prefix = "${local.name}-"
  description = "Banyan nodes: the tree dials them at 7600"
  vpc_id      = var.vpc_id
  tags        = local.tags

  lifecycle {
    create_before_destroy = true
  }
}

resource "aws_vpc_security_group_ingress_rule" "tree" {
  for_each          = toset(var.tree_cidrs)
  security_group_id = aws_security_group.nodes.id
  description       = "Parents, children and commands"
  cidr_ipv4         = each.value
  from_port         = 7600
  to_port           = 7600
  ip_protocol       = "tcp"
}

# Nodes dial each other as well.
resource "aws_vpc_security_group_ingress_rule" "nodes" {
  security_group_id            = aws_security_group.nodes.id
  description                  = "Nodes of the same model"
  referenced_security_group_id = aws_security_group.nodes.id
  from_port                    = 7600
  to_port                      = 7600
  ip_protocol                  = "tcp"
}

resource "aws_vpc_security_group_egress_rule" "all" {
  security_group_id = aws_security_group.nodes.id
  description       = "The registry, roots, and the model hub"
  cidr_ipv4         = "0.0.0.0/0"
  ip_protocol       = "-1"
}

resource "aws_launch_template" "node" {
  name_prefix            = "${local.name}-"
  image_id               = var.image_id
  vpc_security_group_ids = [aws_security_group.nodes.id]
  update_default_version = true
  tags                   = local.tags

  # The watcher for notices asks the metadata server, by tokens only.
  metadata_options {
    http_endpoint               = "enabled"
    http_tokens                 = "required"
    http_put_response_hop_limit = 1
  }

  block_device_mappings {
    device_name = "/dev/xvda"
    ebs {
      volume_size = var.disk_gb
      volume_type = "gp3"
      encrypted   = true
    }
  }

  user_data = base64encode(templatefile("${path.module}/user-data.sh.tftpl", {
    release_url    = var.release_url
    release_sha256 = var.release_sha256
    etcd           = join(",", var.etcd)
    cluster        = var.cluster
    parent         = var.parent
    model          = var.model
    extra          = var.environment
  }))

  tag_specifications {
    resource_type = "instance"
    tags          = local.tags
  }
}

resource "aws_autoscaling_group" "nodes" {
  name_prefix         = "${local.name}-"
  vpc_zone_identifier = var.subnet_ids
  min_size            = var.min
  max_size            = var.max
  # Another instance is started when one is about to be taken, not when it is gone.
  capacity_rebalance = true
  health_check_type  = "EC2"
  default_cooldown   = 60

  mixed_instances_policy {
    instances_distribution {
      on_demand_base_capacity                  = var.on_demand
      on_demand_percentage_above_base_capacity = 0
      spot_allocation_strategy                 = "price-capacity-optimized"
    }

    launch_template {
      launch_template_specification {
        launch_template_id = aws_launch_template.node.id
        version            = aws_launch_template.node.latest_version
      }

      dynamic "override" {
        for_each = var.instance_types
        content {
          instance_type = override.value
        }
      }
    }
  }

  instance_refresh {
    strategy = "Rolling"
    preferences {
      min_healthy_percentage = 75
    }
  }

  dynamic "tag" {
    for_each = local.tags
    content {
      key                 = tag.key
      value               = tag.value
      propagate_at_launch = true
    }
  }

  lifecycle {
    # `banyan autoscale` decides it: aws autoscaling set-desired-capacity.
    ignore_changes = [desired_capacity]
  }
}

# Whatever ends an instance on purpose waits a while: its unit is stopped, which drains the node.
resource "aws_autoscaling_lifecycle_hook" "drain" {
  name                   = "drain"
  autoscaling_group_name = aws_autoscaling_group.nodes.name
  lifecycle_transition   = "autoscaling:EC2_INSTANCE_TERMINATING"
  default_result         = "CONTINUE"
  heartbeat_timeout      = 120
}
