// Command kubelet123 is kubelet v1.23.17 built from its module: the first of those that ask for runtime.v1 and take
// runtime.v1alpha2 where there is no other, and the last with an in-tree dockershim.
package main

import (
	"os"

	"k8s.io/component-base/cli"
	_ "k8s.io/component-base/logs/json/register"
	_ "k8s.io/component-base/metrics/prometheus/restclient"
	_ "k8s.io/component-base/metrics/prometheus/version"
	"k8s.io/kubernetes/cmd/kubelet/app"
)

func main() { os.Exit(cli.Run(app.NewKubeletCommand())) }
