// SPDX-License-Identifier: Apache-2.0

package kindcluster

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"

	v1 "github.com/google/go-containerregistry/pkg/v1"
	appsv1 "k8s.io/api/apps/v1"
	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/util/intstr"
	"k8s.io/client-go/kubernetes"

	"github.com/registry-cache/extension/hack/ociimage"
	"github.com/registry-cache/extension/test/testbed/gobuild"
	"github.com/registry-cache/extension/test/testbed/poll"
	"github.com/registry-cache/extension/test/testbed/workspace"
)

const (
	// netcheck is the namespace and the name of what Verify runs in the cluster for its time.
	netcheck      = "testbed-netcheck"
	netcheckImage = "registry-cache.testbed/netcheck:v1"
	netcheckPort  = 8080
	// askTimeout is more than netcheck takes to report that a request was not answered.
	askTimeout = 5 * time.Second
)

// checkPods are the pods of the program netcheck, one on each node, and the Service before them.
type checkPods struct {
	client  kubernetes.Interface
	pods    []corev1.Pod
	service string // ClusterIP
}

// deployChecks builds netcheck, runs it on every node, and returns when all its pods are ready.
func (c *Cluster) deployChecks(ctx context.Context, client kubernetes.Interface) (*checkPods, error) {
	if err := c.loadNetcheck(ctx); err != nil {
		return nil, err
	}
	if err := removeChecks(ctx, client); err != nil {
		return nil, err
	}
	labels := map[string]string{"app": netcheck}
	if _, err := client.CoreV1().Namespaces().Create(ctx, &corev1.Namespace{ObjectMeta: metav1.ObjectMeta{Name: netcheck}}, metav1.CreateOptions{}); err != nil {
		return nil, err
	}
	service, err := client.CoreV1().Services(netcheck).Create(ctx, &corev1.Service{
		ObjectMeta: metav1.ObjectMeta{Name: netcheck},
		Spec:       corev1.ServiceSpec{Selector: labels, Ports: []corev1.ServicePort{{Port: netcheckPort}}},
	}, metav1.CreateOptions{})
	if err != nil {
		return nil, err
	}
	daemons, err := client.AppsV1().DaemonSets(netcheck).Create(ctx, netcheckDaemonSet(labels), metav1.CreateOptions{})
	if err != nil {
		return nil, err
	}
	err = poll.Until(ctx, pollInterval, settleTimeout, func(ctx context.Context) error {
		d, err := client.AppsV1().DaemonSets(netcheck).Get(ctx, daemons.Name, metav1.GetOptions{})
		if err != nil {
			return err
		}
		if s := d.Status; s.ObservedGeneration == 0 || s.DesiredNumberScheduled == 0 || s.NumberReady < s.DesiredNumberScheduled {
			return fmt.Errorf("%d of %d pods are ready", s.NumberReady, s.DesiredNumberScheduled)
		}
		return nil
	})
	if err != nil {
		return nil, fmt.Errorf("waiting for DaemonSet %s/%s: %w", netcheck, netcheck, err)
	}
	pods, err := client.CoreV1().Pods(netcheck).List(ctx, metav1.ListOptions{LabelSelector: "app=" + netcheck})
	if err != nil {
		return nil, err
	}
	slices.SortFunc(pods.Items, func(a, b corev1.Pod) int { return strings.Compare(a.Spec.NodeName, b.Spec.NodeName) })
	return &checkPods{client: client, pods: pods.Items, service: service.Spec.ClusterIP}, nil
}

func (c *Cluster) loadNetcheck(ctx context.Context) error {
	root, err := workspace.Root()
	if err != nil {
		return err
	}
	dir, err := os.MkdirTemp("", netcheck+"-*")
	if err != nil {
		return err
	}
	defer os.RemoveAll(dir) //nolint:errcheck // a temporary folder may stay
	program := filepath.Join(dir, "netcheck")
	if err := gobuild.Build(ctx, gobuild.Options{Dir: root, Packages: []string{"./test/testbed/kindcluster/netcheck"}, Output: program}); err != nil {
		return err
	}
	image, err := ociimage.Build(ociimage.Config{
		Files:      []ociimage.File{{Path: "/netcheck", Mode: 0o755, Source: program}},
		Entrypoint: []string{"/netcheck"},
	})
	if err != nil {
		return err
	}
	archive := filepath.Join(dir, "netcheck.tar")
	if err := ociimage.WriteArchive(archive, map[string]v1.Image{netcheckImage: image}); err != nil {
		return err
	}
	return c.LoadArchive(ctx, archive)
}

func netcheckDaemonSet(labels map[string]string) *appsv1.DaemonSet {
	return &appsv1.DaemonSet{
		ObjectMeta: metav1.ObjectMeta{Name: netcheck},
		Spec: appsv1.DaemonSetSpec{
			Selector: &metav1.LabelSelector{MatchLabels: labels},
			Template: corev1.PodTemplateSpec{
				ObjectMeta: metav1.ObjectMeta{Labels: labels},
				Spec: corev1.PodSpec{
					Tolerations:                   []corev1.Toleration{{Operator: corev1.TolerationOpExists}},
					AutomountServiceAccountToken:  new(false),
					TerminationGracePeriodSeconds: new(int64(0)),
					Containers: []corev1.Container{{
						Name:            "netcheck",
						Image:           netcheckImage,
						ImagePullPolicy: corev1.PullNever,
						Env: []corev1.EnvVar{{Name: "NODE_NAME", ValueFrom: &corev1.EnvVarSource{
							FieldRef: &corev1.ObjectFieldSelector{FieldPath: "spec.nodeName"},
						}}},
						ReadinessProbe: &corev1.Probe{
							PeriodSeconds: 1,
							ProbeHandler:  corev1.ProbeHandler{HTTPGet: &corev1.HTTPGetAction{Path: "/name", Port: intstr.FromInt32(netcheckPort)}},
						},
					}},
				},
			},
		},
	}
}

// deleteChecks begins to remove what deployChecks has made.
func deleteChecks(ctx context.Context, client kubernetes.Interface) error {
	err := client.CoreV1().Namespaces().Delete(ctx, netcheck, metav1.DeleteOptions{})
	if apierrors.IsNotFound(err) {
		return nil
	}
	return err
}

// removeChecks removes what deployChecks has made and waits until it is gone.
func removeChecks(ctx context.Context, client kubernetes.Interface) error {
	if err := deleteChecks(ctx, client); err != nil {
		return err
	}
	err := poll.Until(ctx, pollInterval, settleTimeout, func(ctx context.Context) error {
		_, err := client.CoreV1().Namespaces().Get(ctx, netcheck, metav1.GetOptions{})
		if apierrors.IsNotFound(err) {
			return nil
		}
		return errors.Join(err, errors.New("it still exists"))
	})
	if err != nil {
		return fmt.Errorf("waiting for namespace %s to be gone: %w", netcheck, err)
	}
	return nil
}

// ask asks the program in a pod, by way of the API server.
func (p *checkPods) ask(ctx context.Context, pod corev1.Pod, path string, parameters map[string]string) (string, error) {
	ctx, cancel := context.WithTimeout(ctx, askTimeout)
	defer cancel()
	request := p.client.CoreV1().RESTClient().Get().Namespace(pod.Namespace).Resource("pods").
		Name(fmt.Sprintf("%s:%d", pod.Name, netcheckPort)).SubResource("proxy").Suffix(path)
	for name, value := range parameters {
		request = request.Param(name, value)
	}
	result := request.Do(ctx)
	body, err := result.Raw()
	if err != nil {
		// The program's own words are in the body.
		return "", fmt.Errorf("pod on node %s, %s %v: %w: %s", pod.Spec.NodeName, path, parameters, err, strings.TrimSpace(string(body)))
	}
	return string(body), nil
}
