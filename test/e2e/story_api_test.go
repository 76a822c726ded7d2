// SPDX-License-Identifier: Apache-2.0

package e2e

import (
	"bytes"
	"context"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"time"

	gardencorev1beta1 "github.com/gardener/gardener/pkg/apis/core/v1beta1"
	extensionsv1alpha1 "github.com/gardener/gardener/pkg/apis/extensions/v1alpha1"
	. "github.com/onsi/ginkgo/v2"
	. "github.com/onsi/gomega"
	appsv1 "k8s.io/api/apps/v1"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"github.com/registry-cache/extension/test/testbed/product"
	"github.com/registry-cache/extension/test/testbed/pull"
	"github.com/registry-cache/extension/test/testbed/shoot"
	"github.com/registry-cache/extension/test/testbed/workspace"
)

// userKubectl runs "bin/testbed kubectl" as a user would, and returns what it prints.
func userKubectl(ctx context.Context, args ...string) string {
	GinkgoHelper()
	cmd := exec.CommandContext(ctx, testbedProgram, append([]string{"kubectl"}, args...)...)
	cmd.Dir = checkout()
	var stdout, stderr bytes.Buffer
	cmd.Stdout, cmd.Stderr = &stdout, &stderr
	Expect(cmd.Run()).To(Succeed(), "kubectl %s: %s%s", strings.Join(args, " "), &stdout, &stderr)
	return stdout.String()
}

func checkout() string {
	GinkgoHelper()
	root, err := workspace.Root()
	Expect(err).NotTo(HaveOccurred())
	return root
}

// testbedProgram is built from this checkout by the first story that needs it.
var testbedProgram string

func buildTestbed(ctx context.Context) {
	GinkgoHelper()
	dir, err := os.MkdirTemp("", "testbed-")
	Expect(err).NotTo(HaveOccurred())
	DeferCleanup(os.RemoveAll, dir)
	testbedProgram = filepath.Join(dir, "testbed")
	cmd := exec.CommandContext(ctx, "go", "build", "-trimpath", "-buildvcs=false", "-o", testbedProgram, "./test/testbed/cmd/testbed")
	cmd.Dir = checkout()
	cmd.Env = append(os.Environ(), "CGO_ENABLED=0")
	output, err := cmd.CombinedOutput()
	Expect(err).NotTo(HaveOccurred(), "%s", output)
}

// edits are edits of a Shoot that go on while something happens.
type edits struct {
	stop    chan struct{}
	stopped chan struct{}
	made    int
	failed  []error
}

// maxEdits bounds edits that end by end.
const maxEdits = 5000

// startEdits edits a Shoot again and again, each time in another way, without changing it: the API server asks the
// admission, and forgets the edit.
func startEdits(ctx context.Context, key client.ObjectKey) *edits {
	e := &edits{stop: make(chan struct{}), stopped: make(chan struct{})}
	go func() {
		defer close(e.stopped)
		for e.made < maxEdits {
			select {
			case <-e.stop:
				return
			case <-ctx.Done():
				return
			default:
			}
			e.made++
			patch := fmt.Sprintf(`[{"op":"replace","path":"/spec/extensions/0/providerConfig/caches/0/size","value":"%dGi"}]`, 1000+e.made)
			shoot := &gardencorev1beta1.Shoot{ObjectMeta: metav1.ObjectMeta{Namespace: key.Namespace, Name: key.Name}}
			if err := kube.Patch(ctx, shoot, client.RawPatch(types.JSONPatchType, []byte(patch)), client.DryRunAll); err != nil {
				e.failed = append(e.failed, fmt.Errorf("edit %d: %w", e.made, err))
			}
		}
	}()
	return e
}

// end returns how many edits there were, none of which may have failed.
func (e *edits) end() int {
	GinkgoHelper()
	close(e.stop)
	<-e.stopped
	Expect(e.failed).To(BeEmpty(), "of %d edits", e.made)
	return e.made
}

// The Shoot owner uses only Gardener's API and kubectl.
var _ = Describe("A Shoot owner with kubectl", Ordered, Label("api"), func() {
	const (
		namespace = "garden-dev"
		name      = "crazy-botany"
		succeeded = "jsonpath={.status.lastOperation.state}=Succeeded"
	)
	key := client.ObjectKey{Namespace: namespace, Name: name}
	// reconciled waits until the gardenlet has come to a good end with what the owner has written last.
	reconciled := func(ctx context.Context) *gardencorev1beta1.Shoot {
		GinkgoHelper()
		written := &gardencorev1beta1.Shoot{}
		Expect(kube.Get(ctx, key, written)).To(Succeed())
		shoot := &gardencorev1beta1.Shoot{}
		Eventually(func(g Gomega) {
			shoot = &gardencorev1beta1.Shoot{}
			g.Expect(kube.Get(ctx, key, shoot)).To(Succeed())
			g.Expect(shoot.Status.ObservedGeneration).To(BeNumerically(">=", written.Generation))
			g.Expect(shoot.Status.LastOperation.State).To(Equal(gardencorev1beta1.LastOperationStateSucceeded), "%+v %+v", shoot.Status.LastOperation, shoot.Status.LastErrors)
		}).WithContext(ctx).WithTimeout(5 * time.Minute).Should(Succeed())
		return shoot
	}

	BeforeAll(func(ctx context.Context) {
		buildTestbed(ctx)
		Expect(shoot.Delete(ctx, tb.Cluster, progress, exampleShoot())).To(Succeed())
		userKubectl(ctx, "apply", "-f", "example/shoot.yaml")
		DeferCleanup(func(ctx context.Context) {
			Expect(shoot.Delete(ctx, tb.Cluster, progress, exampleShoot())).To(Succeed())
		}, NodeTimeout(5*time.Minute))
		reconciled(ctx)
	}, NodeTimeout(12*time.Minute))

	It("reads the state and the conditions of the Shoot", func(ctx context.Context) {
		Expect(userKubectl(ctx, "-n", namespace, "wait", "--for="+succeeded, "--timeout=1m", "shoot/"+name)).To(ContainSubstring("condition met"))
		Eventually(func(g Gomega) {
			shoot := &gardencorev1beta1.Shoot{}
			g.Expect(kube.Get(ctx, key, shoot)).To(Succeed())
			states := map[string]string{}
			for _, condition := range shoot.Status.Conditions {
				states[string(condition.Type)] = string(condition.Status)
			}
			g.Expect(states).To(Equal(map[string]string{
				"APIServerAvailable": "True", "ControlPlaneHealthy": "True", "EveryNodeReady": "True", "SystemComponentsHealthy": "True",
			}), "%+v", shoot.Status.Conditions)
		}).WithContext(ctx).WithTimeout(3 * time.Minute).Should(Succeed())
		table := userKubectl(ctx, "-n", namespace, "get", "shoot")
		Expect(table).To(ContainSubstring(name))
		Expect(table).To(ContainSubstring("Create Succeeded (100%)"))
		Expect(table).To(ContainSubstring("healthy"))
	}, SpecTimeout(5*time.Minute))

	It("enlarges a volume by editing the Shoot", func(ctx context.Context) {
		// KUBE_EDITOR is how kubectl edit is used without a person.
		GinkgoT().Setenv("KUBE_EDITOR", "sed -i s/100Gi/120Gi/")
		Expect(userKubectl(ctx, "-n", namespace, "edit", "shoot", name)).To(ContainSubstring("edited"))
		shoot := reconciled(ctx)
		Expect(shoot.Status.LastOperation.Type).To(Equal(gardencorev1beta1.LastOperationTypeReconcile))
		Eventually(func(g Gomega) {
			claims := &corev1.PersistentVolumeClaimList{}
			g.Expect(kube.List(ctx, claims, client.InNamespace("kube-system"), client.MatchingLabels{"upstream-host": "docker.io"})).To(Succeed())
			g.Expect(claims.Items).To(HaveLen(1))
			g.Expect(claims.Items[0].Spec.Resources.Requests.Storage().String()).To(Equal("120Gi"))
		}).WithContext(ctx).Should(Succeed())
	}, SpecTimeout(8*time.Minute))

	// The webhook fails closed, so an unavailable admission webhook rejects each edit of a Shoot. A rollout must not cause
	// that.
	It("edits Shoots while the admission webhook is restarted", func(ctx context.Context) {
		edits := startEdits(ctx, key)
		admission := client.ObjectKey{Namespace: product.Namespace, Name: product.Admission}
		for range 2 {
			userKubectl(ctx, "-n", admission.Namespace, "rollout", "restart", "deployment/"+admission.Name)
			userKubectl(ctx, "-n", admission.Namespace, "rollout", "status", "--timeout=2m", "deployment/"+admission.Name)
			deployment := &appsv1.Deployment{}
			Expect(kube.Get(ctx, admission, deployment)).To(Succeed())
			Eventually(func(g Gomega) {
				pods := &corev1.PodList{}
				g.Expect(kube.List(ctx, pods, client.InNamespace(admission.Namespace), client.MatchingLabels(deployment.Spec.Selector.MatchLabels))).To(Succeed())
				g.Expect(pods.Items).To(HaveLen(int(*deployment.Spec.Replicas)), "the replaced pods are gone")
			}).WithContext(ctx).WithTimeout(time.Minute).Should(Succeed())
		}
		Expect(edits.end()).To(BeNumerically(">", 20))
	}, SpecTimeout(6*time.Minute))

	It("removes one cache and keeps the other caches", func(ctx context.Context) {
		services := func(g Gomega) []string {
			list := &corev1.ServiceList{}
			g.Expect(kube.List(ctx, list, client.InNamespace("kube-system"), client.HasLabels{"upstream-host"})).To(Succeed())
			return itemNames(list)
		}
		userKubectl(ctx, "-n", namespace, "patch", "shoot", name, "--type=json", "-p", `[{"op":"remove","path":"/spec/extensions/0/providerConfig/caches/1"}]`)
		reconciled(ctx)
		Eventually(services).WithContext(ctx).Should(ConsistOf("registry-docker-io", "registry-quay-io"))
		node := workers()[0]
		for _, upstream := range []string{"docker.io", "quay.io"} {
			Expect(pull.WaitForMirror(ctx, node, upstream)).To(Succeed())
		}
		outcome, err := pull.Measured(ctx, tb.Upstream, node, newImage(ctx, "docker.io"))
		Expect(err).NotTo(HaveOccurred())
		Expect(outcome.FromNodes).To(BeZero(), "%+v", outcome)
	}, SpecTimeout(8*time.Minute))

	DescribeTable("receives the field path in the error for", func(ctx context.Context, patch, path string) {
		command := exec.CommandContext(ctx, testbedProgram, "kubectl", "-n", namespace, "patch", "shoot", name, "--type=json", "-p", patch)
		command.Dir = checkout()
		output, err := command.CombinedOutput()
		Expect(err).To(HaveOccurred())
		Expect(string(output)).To(ContainSubstring(path))
	},
		Entry("a smaller volume", `[{"op":"replace","path":"/spec/extensions/0/providerConfig/caches/0/size","value":"1Gi"}]`, "spec.extensions[0].providerConfig.caches[0].size", SpecTimeout(time.Minute)),
		Entry("a scheme in an upstream", `[{"op":"replace","path":"/spec/extensions/0/providerConfig/caches/0/upstream","value":"https://docker.io"}]`, "spec.extensions[0].providerConfig.caches[0].upstream", SpecTimeout(time.Minute)),
		Entry("an unknown field", `[{"op":"add","path":"/spec/extensions/0/providerConfig/caches/0/sice","value":"1Gi"}]`, "spec.extensions[0].providerConfig.caches[0].sice", SpecTimeout(time.Minute)),
	)

	It("receives an error for an extension type that the landscape does not provide", func(ctx context.Context) {
		unknown := strings.Replace(string(exampleShoot()), "- type: registry-cache", "- type: no-such-extension\n  - type: registry-cache", 1)
		_, err := shoot.Apply(ctx, tb.Cluster, progress, []byte(unknown))
		Expect(err).To(MatchError(ContainSubstring("no-such-extension")))
	}, SpecTimeout(time.Minute))

	It("hibernates and wakes up the Shoot", func(ctx context.Context) {
		for _, hibernated := range []string{"true", "false"} {
			userKubectl(ctx, "-n", namespace, "patch", "shoot", name, "--type=merge", "-p", `{"spec":{"hibernation":{"enabled":`+hibernated+`}}}`)
			shoot := reconciled(ctx)
			Expect(shoot.Status.IsHibernated).To(Equal(hibernated == "true"))
		}
	}, SpecTimeout(8*time.Minute))

	It("deletes the Shoot and all its objects after confirming the deletion", func(ctx context.Context) {
		By("deleting without the confirmation")
		refused := exec.CommandContext(ctx, testbedProgram, "kubectl", "-n", namespace, "delete", "shoot", name)
		refused.Dir = checkout()
		output, err := refused.CombinedOutput()
		Expect(err).To(HaveOccurred())
		Expect(string(output)).To(ContainSubstring("confirmation.gardener.cloud/deletion"))

		By("deleting with it")
		userKubectl(ctx, "-n", namespace, "annotate", "shoot", name, "confirmation.gardener.cloud/deletion=true")
		userKubectl(ctx, "-n", namespace, "delete", "shoot", name, "--timeout=5m")
		Expect(userKubectl(ctx, "-n", namespace, "get", "shoot", "--ignore-not-found", name)).To(BeEmpty())
		Expect(client.IgnoreNotFound(kube.Get(ctx, client.ObjectKey{Name: "shoot--dev--" + name}, &corev1.Namespace{}))).To(Succeed())
		clusters := &extensionsv1alpha1.ClusterList{}
		Expect(kube.List(ctx, clusters)).To(Succeed())
		Expect(itemNames(clusters)).To(BeEmpty())
		for _, list := range []client.ObjectList{&corev1.ServiceList{}, &corev1.PersistentVolumeClaimList{}} {
			Eventually(func(g Gomega) {
				g.Expect(kube.List(ctx, list, client.InNamespace("kube-system"), client.HasLabels{"upstream-host"})).To(Succeed())
				g.Expect(itemNames(list)).To(BeEmpty())
			}).WithContext(ctx).Should(Succeed())
		}
	}, SpecTimeout(8*time.Minute))
})
