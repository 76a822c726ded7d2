// SPDX-License-Identifier: Apache-2.0

package volumes

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"
	"path"
	"regexp"
	"strconv"
	"strings"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	"k8s.io/apimachinery/pkg/api/resource"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/client-go/kubernetes"
	"k8s.io/client-go/kubernetes/scheme"
	"k8s.io/client-go/tools/remotecommand"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"github.com/registry-cache/extension/test/testbed/host"
	"github.com/registry-cache/extension/test/testbed/kindcluster"
	"github.com/registry-cache/extension/test/testbed/poll"
	"github.com/registry-cache/extension/test/testbed/volumes/loop"
	"github.com/registry-cache/extension/test/testbed/workspace"
)

const (
	// clusterVariable names the environment variable with the name of the kind cluster that these tests use.
	clusterVariable = "TESTBED_CLUSTER"

	stepTimeout  = 2 * time.Minute
	stepInterval = 300 * time.Millisecond
	objectName   = "story" // of the pod and its claim
	mountPath    = "/data"
)

// A claim's whole life: bound, limited, grown under a pod that writes, gone from the node.
func TestVolumeInACluster(t *testing.T) {
	s := newStory(t, "testbed-volumes-story")
	s.create(s.claim("48Mi"))
	s.create(s.pod())
	node := s.runningOn()
	volume := s.currentClaim().Spec.VolumeName

	before := s.fileSystemBytes()
	if before < 32<<20 || before > 48<<20 {
		t.Errorf("a claim of 48Mi has %d bytes", before)
	}
	if written := s.write("first"); written < 32<<20 || written > before {
		t.Errorf("%d bytes could be written to a claim of 48Mi", written)
	}

	grown := s.currentClaim()
	grown.Spec.Resources.Requests[corev1.ResourceStorage] = resource.MustParse("160Mi")
	if err := s.client.Update(t.Context(), grown); err != nil {
		t.Fatal(err)
	}
	start := time.Now()
	s.until("the claim has grown", func(context.Context) error {
		claim := s.currentClaim()
		if capacity := claim.Status.Capacity.Storage(); capacity.Cmp(resource.MustParse("160Mi")) != 0 {
			return fmt.Errorf("its capacity is %s, conditions: %v", capacity, claim.Status.Conditions)
		}
		return nil
	})
	t.Logf("the claim grew in %s", time.Since(start).Round(time.Millisecond))
	if after := s.fileSystemBytes(); after < before+100<<20 {
		t.Errorf("the file system has %d bytes after growing by 112Mi, %d before", after, before)
	}
	if written := s.write("second"); written != 64<<20 {
		t.Errorf("%d bytes of 64 MiB could be written after growing", written)
	}
	if !s.hasDisk(node, volume) {
		t.Errorf("the disk of %s is not on node %s", volume, node)
	}

	s.remove(s.pod())
	s.remove(s.claim("1Mi"))
	s.untilGone(&corev1.PersistentVolume{ObjectMeta: metav1.ObjectMeta{Name: volume}})
	if s.hasDisk(node, volume) {
		t.Errorf("the disk of the deleted %s is still on node %s", volume, node)
	}
	devices, err := loop.List()
	if err != nil {
		t.Fatal(err)
	}
	for _, device := range devices {
		if strings.Contains(device.FilePath, volume) {
			t.Errorf("left after the volume was deleted: %+v", device)
		}
	}
}

// What cannot be provisioned says so where its owner looks.
func TestInfeasibleClaimInACluster(t *testing.T) {
	s := newStory(t, "testbed-volumes-infeasible")
	s.create(s.claim("1Mi"))
	s.create(s.pod())
	s.until("an event names the field", func(ctx context.Context) error {
		var events corev1.EventList
		if err := s.client.List(ctx, &events, client.InNamespace(s.namespace)); err != nil {
			return err
		}
		for _, event := range events.Items {
			if event.InvolvedObject.Kind == "PersistentVolumeClaim" && event.Reason == "ProvisioningFailed" &&
				strings.Contains(event.Message, "spec.resources.requests.storage: a size of 1048576 bytes is too small") {
				return nil
			}
		}
		return fmt.Errorf("none of %d events", len(events.Items))
	})
}

// story is a namespace with one claim and one pod.
type story struct {
	t         *testing.T
	cluster   *kindcluster.Cluster
	client    client.Client
	namespace string
	image     string
}

func newStory(t *testing.T, namespace string) *story {
	t.Helper()
	name := os.Getenv(clusterVariable)
	if name == "" {
		t.Skipf("needs a cluster: set %s to its name (make kind-up makes %q)", clusterVariable, kindcluster.DefaultName)
	}
	progress := workspace.NewProgress(t.Output())
	engine, err := host.Prepare(t.Context(), progress)
	if err != nil {
		t.Fatal(err)
	}
	cluster, err := kindcluster.Open(t.Context(), engine, kindcluster.Options{Name: name})
	if err != nil {
		t.Fatal(err)
	}
	if err := Install(t.Context(), cluster, progress); err != nil {
		t.Fatal(err)
	}
	image, _, err := buildImage(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	config, err := cluster.RESTConfig()
	if err != nil {
		t.Fatal(err)
	}
	c, err := client.New(config, client.Options{})
	if err != nil {
		t.Fatal(err)
	}
	s := &story{t: t, cluster: cluster, client: c, namespace: namespace, image: image}
	s.create(&corev1.Namespace{ObjectMeta: metav1.ObjectMeta{Name: namespace}})
	return s
}

func (s *story) claim(size string) *corev1.PersistentVolumeClaim {
	return &corev1.PersistentVolumeClaim{
		ObjectMeta: metav1.ObjectMeta{Namespace: s.namespace, Name: objectName},
		Spec: corev1.PersistentVolumeClaimSpec{
			AccessModes: []corev1.PersistentVolumeAccessMode{corev1.ReadWriteOnce},
			Resources: corev1.VolumeResourceRequirements{
				Requests: corev1.ResourceList{corev1.ResourceStorage: resource.MustParse(size)},
			},
		},
	}
}

// pod returns a pod with the claim. Its image is that of the driver, because that has a program which writes files and
// one which stays.
func (s *story) pod() *corev1.Pod {
	return &corev1.Pod{
		ObjectMeta: metav1.ObjectMeta{Namespace: s.namespace, Name: objectName},
		Spec: corev1.PodSpec{
			TerminationGracePeriodSeconds: new(int64(5)),
			Containers: []corev1.Container{{
				Name: "writer", Image: s.image, ImagePullPolicy: corev1.PullNever,
				Args:         []string{"controller", "--csi-endpoint=unix:///run/csi.sock"},
				VolumeMounts: []corev1.VolumeMount{{Name: "data", MountPath: mountPath}},
			}},
			Volumes: []corev1.Volume{{Name: "data", VolumeSource: corev1.VolumeSource{
				PersistentVolumeClaim: &corev1.PersistentVolumeClaimVolumeSource{ClaimName: objectName},
			}}},
		},
	}
}

// create makes the object now and removes it when the test ends.
func (s *story) create(object client.Object) {
	s.t.Helper()
	if err := s.client.Create(s.t.Context(), object); err != nil {
		s.t.Fatal(err)
	}
	s.t.Cleanup(func() {
		ctx, cancel := context.WithTimeout(context.Background(), stepTimeout)
		defer cancel()
		if err := client.IgnoreNotFound(s.client.Delete(ctx, object)); err != nil {
			s.t.Error(err)
		}
	})
}

func (s *story) remove(object client.Object) {
	s.t.Helper()
	if err := s.client.Delete(s.t.Context(), object); err != nil {
		s.t.Fatal(err)
	}
	s.untilGone(object)
}

func (s *story) untilGone(object client.Object) {
	s.t.Helper()
	s.until(fmt.Sprintf("%T %s is gone", object, object.GetName()), func(ctx context.Context) error {
		err := s.client.Get(ctx, client.ObjectKeyFromObject(object), object)
		if apierrors.IsNotFound(err) {
			return nil
		}
		return errors.Join(err, errors.New("it exists"))
	})
}

func (s *story) until(what string, check func(context.Context) error) {
	s.t.Helper()
	if err := poll.Until(s.t.Context(), stepInterval, stepTimeout, check); err != nil {
		s.t.Fatalf("waiting until %s: %v", what, err)
	}
}

// runningOn waits until the pod runs and returns the name of its node.
func (s *story) runningOn() (node string) {
	s.t.Helper()
	s.until("the pod runs", func(ctx context.Context) error {
		pod := s.pod()
		if err := s.client.Get(ctx, client.ObjectKeyFromObject(pod), pod); err != nil {
			return err
		}
		node = pod.Spec.NodeName
		if pod.Status.Phase != corev1.PodRunning {
			return fmt.Errorf("it is %s, conditions: %v", pod.Status.Phase, pod.Status.Conditions)
		}
		return nil
	})
	return node
}

func (s *story) currentClaim() *corev1.PersistentVolumeClaim {
	s.t.Helper()
	claim := s.claim("1Mi")
	if err := s.client.Get(s.t.Context(), client.ObjectKeyFromObject(claim), claim); err != nil {
		s.t.Fatal(err)
	}
	return claim
}

// statfs are the lines of "xfs_io -c statfs" with the size of a file system.
var statfs = regexp.MustCompile(`(?m)^statfs\.f_bsize = (\d+)\nstatfs\.f_blocks = (\d+)$`)

// fileSystemBytes returns the size of the file system as the pod sees it.
func (s *story) fileSystemBytes() int64 {
	s.t.Helper()
	output, err := s.exec("xfs_io", "-c", "statfs", mountPath)
	if err != nil {
		s.t.Fatal(err)
	}
	match := statfs.FindStringSubmatch(output)
	if match == nil {
		s.t.Fatalf("xfs_io statfs prints nothing like %s:\n%s", statfs, output)
	}
	size, err := strconv.ParseInt(match[1], 10, 64)
	if err != nil {
		s.t.Fatal(err)
	}
	blocks, err := strconv.ParseInt(match[2], 10, 64)
	if err != nil {
		s.t.Fatal(err)
	}
	return size * blocks
}

// wrote is what "xfs_io -c pwrite" says at its end, also when the file system is full.
var wrote = regexp.MustCompile(`(?m)^wrote (\d+)/\d+ bytes`)

// write lets the pod write 64 MiB to a new file and returns how many bytes could be written.
func (s *story) write(name string) int64 {
	s.t.Helper()
	output, err := s.exec("xfs_io", "-f", "-c", "pwrite -b 1m 0 64m", "-c", "fsync", path.Join(mountPath, name))
	if err != nil {
		s.t.Fatalf("writing %s: %v: %s", name, err, output)
	}
	match := wrote.FindStringSubmatch(output)
	if match == nil {
		s.t.Fatalf("writing %s: xfs_io prints nothing like %s:\n%s", name, wrote, output)
	}
	written, err := strconv.ParseInt(match[1], 10, 64)
	if err != nil {
		s.t.Fatal(err)
	}
	return written
}

// exec runs a program in the pod and returns what it prints to either output.
func (s *story) exec(command ...string) (string, error) {
	s.t.Helper()
	config, err := s.cluster.RESTConfig()
	if err != nil {
		s.t.Fatal(err)
	}
	clientset, err := kubernetes.NewForConfig(config)
	if err != nil {
		s.t.Fatal(err)
	}
	request := clientset.CoreV1().RESTClient().Post().Resource("pods").Namespace(s.namespace).Name(objectName).SubResource("exec").
		VersionedParams(&corev1.PodExecOptions{Command: command, Stdout: true, Stderr: true}, scheme.ParameterCodec)
	executor, err := remotecommand.NewWebSocketExecutor(config, "GET", request.URL().String())
	if err != nil {
		s.t.Fatal(err)
	}
	var stdout, stderr bytes.Buffer
	err = executor.StreamWithContext(s.t.Context(), remotecommand.StreamOptions{Stdout: &stdout, Stderr: &stderr})
	return stdout.String() + stderr.String(), err
}

// hasDisk tells whether the node has the disk of the volume.
func (s *story) hasDisk(node, volume string) bool {
	s.t.Helper()
	nodes, err := s.cluster.Nodes(s.t.Context())
	if err != nil {
		s.t.Fatal(err)
	}
	for _, n := range nodes {
		if n.Name != node {
			continue
		}
		names, err := n.Run(s.t.Context(), nil, "ls", "/var/lib/registry-cache-testbed/volumes")
		if err != nil {
			s.t.Fatal(err)
		}
		return strings.Contains(string(names), volume+".img")
	}
	s.t.Fatalf("there is no node %s", node)
	return false
}
