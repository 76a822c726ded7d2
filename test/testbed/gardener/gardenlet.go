// SPDX-License-Identifier: Apache-2.0

package gardener

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"

	appsv1 "k8s.io/api/apps/v1"
	corev1 "k8s.io/api/core/v1"
	rbacv1 "k8s.io/api/rbac/v1"
	"k8s.io/apimachinery/pkg/api/resource"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/client-go/rest"
	"k8s.io/client-go/tools/clientcmd"
	clientcmdapi "k8s.io/client-go/tools/clientcmd/api"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"github.com/registry-cache/extension/test/testbed/gardenlet"
	"github.com/registry-cache/extension/test/testbed/gobuild"
	"github.com/registry-cache/extension/test/testbed/kindcluster"
)

const (
	gardenletName    = "gardenlet"
	gardenletPackage = "./test/testbed/cmd/gardenlet"
	kubeconfigKey    = "kubeconfig"
)

// startGardenlet builds the gardenlet's stand-in from this checkout, installs it and waits until it is ready.
func startGardenlet(ctx context.Context, c client.Client, cluster *kindcluster.Cluster, root, cache, version string) error {
	built, err := buildGardenlet(ctx, root, filepath.Join(cache, gardenletName))
	if err != nil {
		return err
	}
	if err := cluster.LoadArchive(ctx, built.archive); err != nil {
		return err
	}
	nodes, err := cluster.Nodes(ctx)
	if err != nil {
		return err
	}
	settings, err := ReadContainerd(ctx, nodes[0])
	if err != nil {
		return fmt.Errorf("reading the settings of containerd on node %s: %w", nodes[0].Name, err)
	}
	config, err := cluster.RESTConfig()
	if err != nil {
		return err
	}
	kubeconfig, err := inClusterKubeconfig(config)
	if err != nil {
		return err
	}
	for _, object := range gardenletObjects(built.reference, gardenlet.Options{Version: version, Kubeconfig: kubeconfig, Containerd: settings}) {
		if err := apply(ctx, c, object); err != nil {
			return err
		}
	}
	return waitForRollout(ctx, c, client.ObjectKey{Namespace: namespace, Name: gardenletName})
}

// buildGardenlet compiles the program in dir and packs it, unless that archive is there: its name depends on the
// content, and so does the reference.
func buildGardenlet(ctx context.Context, root, dir string) (image, error) {
	program := filepath.Join(dir, gardenletName)
	if err := gobuild.Build(ctx, gobuild.Options{Dir: root, Packages: []string{gardenletPackage}, Output: program}); err != nil {
		return image{}, err
	}
	content, err := os.ReadFile(program)
	if err != nil {
		return image{}, err
	}
	sum := sha256.Sum256(content)
	tag := hex.EncodeToString(sum[:])[:16]
	built := image{reference: imagePrefix + gardenletName + ":" + tag, archive: filepath.Join(dir, tag+".tar")}
	if _, err := os.Stat(built.archive); !errors.Is(err, fs.ErrNotExist) {
		return built, err
	}
	// The nodes have what was in earlier ones.
	old, err := filepath.Glob(filepath.Join(dir, "*.tar"))
	if err != nil {
		return image{}, err
	}
	for _, archive := range old {
		if err := os.Remove(archive); err != nil {
			return image{}, err
		}
	}
	return built, writeImage(program, built.reference, built.archive)
}

// gardenletObjects are in the order in which they have to be applied.
func gardenletObjects(image string, options gardenlet.Options) []client.Object {
	meta := metav1.ObjectMeta{Name: gardenletName, Namespace: namespace}
	global := metav1.ObjectMeta{Name: "registry-cache-testbed:" + gardenletName}
	selector := map[string]string{"app": gardenletName}
	kubeconfig := &corev1.Secret{
		ObjectMeta: metav1.ObjectMeta{Name: "shoot-kubeconfig", Namespace: namespace},
		Data:       map[string][]byte{kubeconfigKey: options.Kubeconfig},
	}
	sum := sha256.Sum256(options.Kubeconfig)
	write := []string{"get", "list", "watch", "create", "update", "patch", "delete"}

	return []client.Object{
		&corev1.ServiceAccount{ObjectMeta: meta},
		&rbacv1.ClusterRole{ObjectMeta: global, Rules: []rbacv1.PolicyRule{
			{APIGroups: []string{"core.gardener.cloud"}, Resources: []string{"shoots"}, Verbs: []string{"get", "list", "watch", "update", "patch"}},
			{APIGroups: []string{"core.gardener.cloud"}, Resources: []string{"shoots/status"}, Verbs: []string{"patch"}},
			{APIGroups: []string{"core.gardener.cloud"}, Resources: []string{"projects", "cloudprofiles", "namespacedcloudprofiles"}, Verbs: []string{"get"}},
			{APIGroups: []string{"extensions.gardener.cloud"}, Resources: []string{"clusters", "extensions", "operatingsystemconfigs"}, Verbs: write},
			{APIGroups: []string{"resources.gardener.cloud"}, Resources: []string{"managedresources"}, Verbs: write},
			{APIGroups: []string{""}, Resources: []string{"namespaces", "secrets"}, Verbs: write},
			{APIGroups: []string{""}, Resources: []string{"nodes"}, Verbs: []string{"get", "list", "patch"}},
			{APIGroups: []string{"coordination.k8s.io"}, Resources: []string{"leases"}, Verbs: []string{"get"}},
		}},
		binding(meta, global),
		kubeconfig,
		&appsv1.Deployment{
			ObjectMeta: meta,
			Spec: appsv1.DeploymentSpec{
				Replicas: new(int32(1)),
				Selector: &metav1.LabelSelector{MatchLabels: selector},
				// Two at once would both act: there is no leader election.
				Strategy: appsv1.DeploymentStrategy{Type: appsv1.RecreateDeploymentStrategyType},
				Template: corev1.PodTemplateSpec{
					ObjectMeta: metav1.ObjectMeta{Labels: selector, Annotations: map[string]string{"checksum/kubeconfig": hex.EncodeToString(sum[:])}},
					Spec: corev1.PodSpec{
						ServiceAccountName: gardenletName,
						PriorityClassName:  "system-cluster-critical",
						SecurityContext: &corev1.PodSecurityContext{
							RunAsNonRoot:   new(true),
							RunAsUser:      new(nobody),
							RunAsGroup:     new(nobody),
							FSGroup:        new(nobody),
							SeccompProfile: &corev1.SeccompProfile{Type: corev1.SeccompProfileTypeRuntimeDefault},
						},
						Containers: []corev1.Container{{
							Name:            gardenletName,
							Image:           image,
							ImagePullPolicy: corev1.PullNever,
							Args: []string{
								"--gardener-version=" + options.Version,
								"--shoot-kubeconfig=/shoot/" + kubeconfigKey,
								"--sandbox-image=" + options.Containerd.SandboxImage,
								"--cgroup-driver=" + string(options.Containerd.CgroupDriver),
								fmt.Sprintf("--health-bind-address=:%d", healthPort),
							},
							Ports:          []corev1.ContainerPort{{Name: "health", ContainerPort: healthPort, Protocol: corev1.ProtocolTCP}},
							ReadinessProbe: probe("/readyz"),
							LivenessProbe:  probe("/healthz"),
							Resources: corev1.ResourceRequirements{Requests: corev1.ResourceList{
								corev1.ResourceCPU:    resource.MustParse("10m"),
								corev1.ResourceMemory: resource.MustParse("64Mi"),
							}},
							SecurityContext: &corev1.SecurityContext{
								AllowPrivilegeEscalation: new(false),
								ReadOnlyRootFilesystem:   new(true),
								Capabilities:             &corev1.Capabilities{Drop: []corev1.Capability{"ALL"}},
							},
							VolumeMounts: []corev1.VolumeMount{{Name: "shoot", MountPath: "/shoot", ReadOnly: true}},
						}},
						Volumes: []corev1.Volume{{Name: "shoot", VolumeSource: corev1.VolumeSource{Secret: &corev1.SecretVolumeSource{SecretName: kubeconfig.Name, DefaultMode: new(int32(0o440))}}}},
					},
				},
			},
		},
	}
}

// inClusterKubeconfig returns a kubeconfig with the credentials of config for kube-apiserver's Service: extensions run
// as pods, and config is for this machine. The Service's name is in kubeadm's serving certificate.
func inClusterKubeconfig(config *rest.Config) ([]byte, error) {
	if len(config.CAData) == 0 || len(config.CertData) == 0 || len(config.KeyData) == 0 {
		return nil, errors.New("making a kubeconfig for pods: the cluster's kubeconfig has no embedded CA and client certificate")
	}
	const name = "shoot"
	content, err := clientcmd.Write(clientcmdapi.Config{
		CurrentContext: name,
		Contexts:       map[string]*clientcmdapi.Context{name: {Cluster: name, AuthInfo: name}},
		Clusters: map[string]*clientcmdapi.Cluster{name: {
			Server:                   "https://kubernetes.default.svc",
			CertificateAuthorityData: config.CAData,
		}},
		AuthInfos: map[string]*clientcmdapi.AuthInfo{name: {ClientCertificateData: config.CertData, ClientKeyData: config.KeyData}},
	})
	if err != nil {
		return nil, fmt.Errorf("making a kubeconfig for pods: %w", err)
	}
	return content, nil
}
