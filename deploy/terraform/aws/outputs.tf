output "autoscaling_group" {
  description = "For `banyan autoscale`: aws autoscaling set-desired-capacity --auto-scaling-group-name …"
  value       = aws_autoscaling_group.nodes.name
}

output "security_group" {
  description = "What others have to let in."
  value       = aws_security_group.nodes.id
}
