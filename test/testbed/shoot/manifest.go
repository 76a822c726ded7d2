package shoot

import (
	"errors"
	"fmt"
	"runtime"
	"strings"

	gardencorev1beta1 "github.com/gardener/gardener/pkg/apis/core/v1beta1"
	v1beta1constants "github.com/gardener/gardener/pkg/apis/core/v1beta1/constants"
	gardenerutils "github.com/gardener/gardener/pkg/utils/gardener"
	"k8s.io/apimachinery/pkg/util/validation"
	"k8s.io/apimachinery/pkg/util/validation/field"
	kjson "sigs.k8s.io/json"
	"sigs.k8s.io/yaml"
)

// local is the name of everything that Gardener wants named and that is this machine: the infrastructure provider, its
// region, machine type and machine image, the Seed and the CloudProfile.
const local = "local"

const (
	projectNamespacePrefix = "garden-"
	defaultPool            = "worker"
	// maxManifest bounds a manifest in bytes; etcd takes no larger object either.
	maxManifest = 1 << 20
)

// Parse decodes a Shoot manifest in YAML or JSON. Unknown and duplicate fields are errors that name the field's path,
// except in the providerConfig of an extension, which only the extension can check.
func Parse(manifest []byte) (*gardencorev1beta1.Shoot, error) {
	if len(manifest) > maxManifest {
		return nil, fmt.Errorf("decoding the Shoot manifest: it has %d bytes, at most %d are taken", len(manifest), maxManifest)
	}
	content, err := yaml.YAMLToJSONStrict(manifest)
	if err != nil {
		return nil, fmt.Errorf("decoding the Shoot manifest: %w", err)
	}
	shoot := &gardencorev1beta1.Shoot{}
	strict, err := kjson.UnmarshalStrict(content, shoot)
	if err = errors.Join(append([]error{err}, strict...)...); err != nil {
		return nil, fmt.Errorf("decoding the Shoot manifest: %w", err)
	}
	if err := validate(shoot).ToAggregate(); err != nil {
		return nil, fmt.Errorf("checking the Shoot manifest: %w", err)
	}
	return shoot, nil
}

func validate(shoot *gardencorev1beta1.Shoot) field.ErrorList {
	var errs field.ErrorList
	if want := gardencorev1beta1.SchemeGroupVersion.String(); shoot.APIVersion != want {
		errs = append(errs, field.NotSupported(field.NewPath("apiVersion"), shoot.APIVersion, []string{want}))
	}
	if shoot.Kind != "Shoot" {
		errs = append(errs, field.NotSupported(field.NewPath("kind"), shoot.Kind, []string{"Shoot"}))
	}

	metadata := field.NewPath("metadata")
	if shoot.Name == "" {
		errs = append(errs, field.Required(metadata.Child("name"), "the Shoot needs a name"))
	} else {
		for _, problem := range validation.IsDNS1123Label(shoot.Name) {
			errs = append(errs, field.Invalid(metadata.Child("name"), shoot.Name, problem))
		}
	}
	if project, ok := projectOf(shoot.Namespace); !ok {
		errs = append(errs, field.Invalid(metadata.Child("namespace"), shoot.Namespace, "must be the namespace of a project: garden-<project>"))
	} else if id := gardenerutils.ComputeTechnicalID(project, shoot); len(id) > validation.DNS1123LabelMaxLength {
		errs = append(errs, field.TooLong(metadata.Child("name"), shoot.Name, validation.DNS1123LabelMaxLength-len(id)+len(shoot.Name)))
	}

	spec := field.NewPath("spec")
	if workers := shoot.Spec.Provider.Workers; len(workers) > 1 {
		errs = append(errs, field.TooMany(spec.Child("provider", "workers"), len(workers), 1))
	}
	types := map[string]bool{}
	for i, extension := range shoot.Spec.Extensions {
		path := spec.Child("extensions").Index(i).Child("type")
		switch {
		case extension.Type == "":
			errs = append(errs, field.Required(path, "the extension needs a type, for instance registry-cache"))
		case types[extension.Type]:
			errs = append(errs, field.Duplicate(path, extension.Type))
		}
		types[extension.Type] = true
	}
	for i, resource := range shoot.Spec.Resources {
		if ref := resource.ResourceRef; ref.Kind != "Secret" || ref.APIVersion != "v1" {
			errs = append(errs, field.NotSupported(spec.Child("resources").Index(i).Child("resourceRef", "kind"), ref.Kind, []string{"Secret"}))
		}
	}
	return errs
}

// projectOf returns the name of the project that has the namespace.
func projectOf(namespace string) (project string, ok bool) {
	if namespace == v1beta1constants.GardenNamespace {
		return namespace, true
	}
	project, ok = strings.CutPrefix(namespace, projectNamespacePrefix)
	return project, ok && project != "" && len(validation.IsDNS1123Label(namespace)) == 0
}

// facts are what the manifest cannot know about the cluster.
type facts struct {
	// kubernetesVersion is the version of kube-apiserver without "v".
	kubernetesVersion string
	// nodes is the number of nodes, all of them in the Shoot's worker pool.
	nodes int32
}

// complete fills in what Gardener's API server or the owner of a complete Shoot would have written. Nothing that is in
// the manifest changes; what contradicts the cluster is an error.
func complete(shoot *gardencorev1beta1.Shoot, f facts) error {
	spec := &shoot.Spec
	if spec.Kubernetes.Version == "" {
		spec.Kubernetes.Version = f.kubernetesVersion
	} else if spec.Kubernetes.Version != f.kubernetesVersion {
		return field.Invalid(field.NewPath("spec", "kubernetes", "version"), spec.Kubernetes.Version, "the cluster runs "+f.kubernetesVersion+": write that or leave the field out")
	}
	if spec.CloudProfile == nil {
		spec.CloudProfile = &gardencorev1beta1.CloudProfileReference{Kind: v1beta1constants.CloudProfileReferenceKindCloudProfile, Name: local}
	}
	fill(&spec.Region, local)
	fill(&spec.Provider.Type, local)
	fillPointer(&spec.SeedName, local)

	if spec.Networking == nil {
		spec.Networking = &gardencorev1beta1.Networking{}
	}
	fillPointer(&spec.Networking.Type, local)
	// The ranges of kind, which the cluster is made with.
	fillPointer(&spec.Networking.Pods, "10.244.0.0/16")
	fillPointer(&spec.Networking.Services, "10.96.0.0/16")
	if len(spec.Networking.IPFamilies) == 0 {
		spec.Networking.IPFamilies = []gardencorev1beta1.IPFamily{gardencorev1beta1.IPFamilyIPv4}
	}

	if len(spec.Provider.Workers) == 0 {
		spec.Provider.Workers = []gardencorev1beta1.Worker{{Name: defaultPool, Minimum: f.nodes, Maximum: f.nodes}}
	}
	pool := &spec.Provider.Workers[0]
	fill(&pool.Name, defaultPool)
	fill(&pool.Machine.Type, local)
	fillPointer(&pool.Machine.Architecture, runtime.GOARCH)
	if pool.Machine.Image == nil {
		pool.Machine.Image = &gardencorev1beta1.ShootMachineImage{Name: local, Version: new("1.0.0")}
	}
	if pool.CRI == nil {
		pool.CRI = &gardencorev1beta1.CRI{Name: gardencorev1beta1.CRINameContainerD}
	}
	if pool.SystemComponents == nil {
		pool.SystemComponents = &gardencorev1beta1.WorkerSystemComponents{Allow: true}
	}
	return nil
}

func fill(at *string, value string) {
	if *at == "" {
		*at = value
	}
}

func fillPointer(at **string, value string) {
	if *at == nil {
		*at = new(value)
	}
}
