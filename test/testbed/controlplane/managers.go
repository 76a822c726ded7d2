// SPDX-License-Identifier: Apache-2.0

package controlplane

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"path/filepath"
	"time"

	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"github.com/registry-cache/extension/test/testbed/gardener"
	"github.com/registry-cache/extension/test/testbed/poll"
)

// StartControllerManager starts those controllers of kube-controller-manager that act on the objects of a cache. It ends
// with c.
func (c *Cluster) StartControllerManager() error {
	kubeconfig, err := c.writeKubeconfig(c.dir, controllerManager+".kubeconfig")
	if err != nil {
		return err
	}
	process, err := StartProcess(c.dir, c.programs.ControllerManager, nil,
		"--kubeconfig="+kubeconfig, "--leader-elect=false", "--secure-port=0",
		"--controllers=statefulset-controller,garbage-collector-controller,endpointslice-controller,persistentvolumeclaim-protection-controller,namespace-controller")
	if err != nil {
		return err
	}
	c.processes = append(c.processes, process)
	return nil
}

// StartResourceManager starts a gardener-resource-manager that applies the ManagedResources of seed to shoot, with the
// periods that Gardener sets for a Shoot, and waits until it is ready. It has to be stopped.
func StartResourceManager(ctx context.Context, programs Programs, dir string, seed, shoot *Cluster) (*Process, error) {
	ports, err := FreePorts(ctx, 3)
	if err != nil {
		return nil, err
	}
	config, err := gardener.LocalResourceManagerConfig(dir, gardener.Ports{Webhooks: ports[0], Health: ports[1], Metrics: ports[2]})
	if err != nil {
		return nil, err
	}
	source, err := seed.writeKubeconfig(dir, "source.kubeconfig")
	if err != nil {
		return nil, err
	}
	target, err := shoot.writeKubeconfig(dir, "target.kubeconfig")
	if err != nil {
		return nil, err
	}
	process, err := StartProcess(dir, programs.ResourceManager, []string{"KUBECONFIG=" + source, "TARGET_KUBECONFIG=" + target}, "--config="+config)
	if err != nil {
		return nil, err
	}
	if err := process.WaitUntilReady(ctx, fmt.Sprintf("http://127.0.0.1:%d/readyz", ports[1])); err != nil {
		return nil, errors.Join(err, process.Stop())
	}
	return process, nil
}

// WaitUntilReady waits until a GET of url is answered with 200, or the process ends.
func (p *Process) WaitUntilReady(ctx context.Context, url string) error {
	err := poll.Until(ctx, 100*time.Millisecond, startTimeout, func(ctx context.Context) error {
		if err := p.Err(); err != nil {
			return poll.Stop(err)
		}
		request, err := http.NewRequestWithContext(ctx, http.MethodGet, url, nil)
		if err != nil {
			return poll.Stop(err)
		}
		response, err := http.DefaultClient.Do(request)
		if err != nil {
			return err
		}
		defer response.Body.Close()
		if response.StatusCode != http.StatusOK {
			return fmt.Errorf("GET %s: %s", url, response.Status)
		}
		return nil
	})
	if err != nil {
		return fmt.Errorf("waiting for %s: %w", filepath.Base(p.name), err)
	}
	return nil
}

// MarkReady does a kubelet's part: it says of a pod that it runs and is ready, with an address.
func (c *Cluster) MarkReady(ctx context.Context, pod *corev1.Pod, address string) error {
	patch := client.MergeFrom(pod.DeepCopy())
	pod.Status.Phase = corev1.PodRunning
	pod.Status.PodIP, pod.Status.PodIPs = address, []corev1.PodIP{{IP: address}}
	pod.Status.Conditions = []corev1.PodCondition{{Type: corev1.PodReady, Status: corev1.ConditionTrue, LastTransitionTime: metav1.Now()}}
	if err := c.client.Status().Patch(ctx, pod, patch); err != nil {
		return fmt.Errorf("marking pod %s ready: %w", client.ObjectKeyFromObject(pod), err)
	}
	return nil
}

// WaitUntilDeleted waits until an object is gone.
func (c *Cluster) WaitUntilDeleted(ctx context.Context, timeout time.Duration, obj client.Object) error {
	return poll.Until(ctx, 50*time.Millisecond, timeout, func(ctx context.Context) error {
		err := c.client.Get(ctx, client.ObjectKeyFromObject(obj), obj)
		if apierrors.IsNotFound(err) {
			return nil
		}
		if err != nil {
			return err
		}
		return fmt.Errorf("%T %s still exists", obj, client.ObjectKeyFromObject(obj))
	})
}
